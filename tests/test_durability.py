"""kill -9 in the middle of appends, of writers and of the server: what was acknowledged is there, once, in order."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.durable import START_MS, Batch, Outcome, judge, run
from benchmarks.redis_server import RedisServer
from seminar.history.lmdb_store import LMDBHistoryStore
from seminar.history.redis_store import RedisHistoryStore
from seminar.history.store import Event
from tests.stores import needs_server


def check(outcome: Outcome) -> None:
    assert outcome.acknowledged >= 1500
    assert outcome.writers_killed >= 4
    assert (outcome.lost, outcome.duplicated, outcome.disordered, outcome.invented) == (0, 0, 0, 0)


def test_killed_writers_leave_lmdb_with_every_acknowledged_event_once_and_in_order(tmp_path: Path) -> None:
    check(run(partial(LMDBHistoryStore, str(tmp_path / "history"), 0.25), writers=3, events=1500, kills=4, kill_every_s=0.3))


@needs_server
def test_killed_writers_and_a_killed_server_leave_redis_with_every_acknowledged_event_once_and_in_order(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:

        def restart() -> None:
            server.kill()
            server.start()

        outcome = run(
            partial(RedisHistoryStore, server.url), writers=3, events=1500, kills=7, kill_every_s=0.3, kill_server=restart
        )
    check(outcome)
    assert outcome.servers_killed >= 2


def test_a_lost_a_doubled_a_misplaced_and_an_invented_event_would_be_found(tmp_path: Path) -> None:
    store = LMDBHistoryStore(tmp_path / "history", 0.25)
    for number in range(1, 4):
        events = Batch(0, number).events
        store.append("user0", {1: events[1:], 2: [*events, replace(events[0], event_id=None)], 3: events}[number])
    store.append("user0", [Event("0-9-9", Batch(0, 2).time_ms), Event("0-5-0", START_MS)])
    store.append("shared", [*Batch(0, 0).events, *Batch(0, 4).events])
    outcome = Outcome()
    judge(store, [6], outcome)
    store.close()
    # Batch 1 lacks its first event, batch 5 all but one, which is misplaced, as the doubled one of batch 2 is.
    assert (outcome.lost, outcome.duplicated, outcome.disordered, outcome.invented) == (6, 1, 2, 1)
