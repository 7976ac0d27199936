"""Both history stores: what kill -9 in the middle of appends costs, and what a read and an append cost.

    python -m benchmarks.serve_durability [--events 100000]

Every append is on the disk before it is acknowledged (LMDB: a commit; Redis: appendonly yes, appendfsync always). kill -9 ends
processes, not the machine: what a disk does at a power failure, no run of this kind can show.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import Goal, publish, run
from benchmarks.durable import START_MS, Outcome
from benchmarks.durable import run as run_and_kill
from benchmarks.redis_server import RedisServer
from seminar.history.lmdb_store import LMDBHistoryStore
from seminar.history.redis_store import RedisHistoryStore
from seminar.history.store import Event, HistoryStore

LENGTHS = (600, 4_000, 100_000)
CALLS, BURST = 200, 5
WRITERS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="History stores: kill -9, reads, appends.")
    parser.add_argument("--events", type=int, default=100_000, help="acknowledged events a store")
    parser.add_argument("--kill-every", type=float, default=2.0, help="seconds between two kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder) / "redis") as server:

        def restart() -> None:
            server.kill()
            server.start()

        openers = {
            "LMDB": partial(LMDBHistoryStore, f"{folder}/history", 8.0),
            "Redis": partial(RedisHistoryStore, server.url),
        }
        goals = read_path({name: opener() for name, opener in openers.items()})
        for name, opener in openers.items():
            outcome = run_and_kill(
                opener, WRITERS, arguments.events, 10, arguments.kill_every, restart if name == "Redis" else None
            )
            goals += rows(name, outcome, arguments.events)
    publish("serve_durability", goals)


def rows(name: str, outcome: Outcome, events: int) -> list[Goal]:
    """What a run with kills came to."""
    p50, p99 = (1e3 * np.quantile(outcome.append_s, [0.5, 0.99])).tolist()
    title = f"{name}, {WRITERS} writers, kill -9"
    return [
        Goal(f"{title}: acknowledged", outcome.acknowledged, "events", events),
        Goal(f"{title}: of writers", outcome.writers_killed, "kills"),
        Goal(f"{title}: of the server", outcome.servers_killed, "kills"),
        Goal(f"{title}: acknowledged and lost", outcome.lost, "events", 0, at_least=False),
        Goal(f"{title}: stored twice", outcome.duplicated, "events", 0, at_least=False),
        Goal(f"{title}: out of order", outcome.disordered, "events", 0, at_least=False),
        Goal(f"{title}: never sent, or of a torn append", outcome.invented, "events", 0, at_least=False),
        Goal(f"{title}: speed, restarts included", outcome.acknowledged / outcome.seconds, "events/s"),
        Goal(f"{title}: append of 1 to 7 events p50", p50, "ms"),
        Goal(f"{title}: append of 1 to 7 events p99, waits for the server included", p99, "ms"),
    ]


def read_path(stores: dict[str, HistoryStore]) -> list[Goal]:
    """Reads, versions and appends of one event, by turns, at several lengths; closes the stores.

    The 20th percentile says more where others use the machine too.
    """
    goals = []
    for length in LENGTHS:
        user = f"long{length}"
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for name, store in stores.items():
            for at in range(0, length, 10_000):
                store.append(user, [Event(f"i{i % 5000}", START_MS + i) for i in range(at, min(length, at + 10_000))])
            calls[name, "read"] = partial(store.read, user)
            calls[name, "version"] = partial(store.version, user)
            calls[name, "append"] = partial(store.append, user, [Event("i1", START_MS + 10**9)])
        spent: dict[tuple[str, str], list[float]] = {call: [] for call in calls}
        for _ in range(CALLS // BURST):
            for call, function in calls.items():
                for _ in range(BURST):
                    began = time.perf_counter()
                    function()
                    spent[call].append(time.perf_counter() - began)
        goals += [
            Goal(f"{name}, L = {length:,}: {what} p{share}", 1e3 * float(np.percentile(seconds, share)), "ms")
            for (name, what), seconds in spent.items()
            for share in (20, 50)
        ]
    for store in stores.values():
        store.close()
    return goals


if __name__ == "__main__":
    run(main)
