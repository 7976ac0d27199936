"""Writers that are killed in the middle of appends, and the proof of what is left: every acknowledged event once, and in order.

A batch is a function of (writer, number), so what a store should hold is known without keeping it. One batch in four goes to a
user that all writers share, every tenth is late. A killed writer's successor begins with the first batch that was not
acknowledged, which may be stored already: its event ids decide.
"""

import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

from seminar.history.store import Event, HistoryStore, StoreUnavailable

START_MS = 1_600_000_000_000
LATE = 10
RETRY_S = 0.02
_ACK = struct.Struct("<IId")
Opener = Callable[[], HistoryStore]


@dataclass(frozen=True)
class Batch:
    """The `number`-th append of a writer: 1 to 7 events of one moment, so one request."""

    writer: int
    number: int

    @property
    def user(self) -> str:
        return "shared" if self.number % 4 == 0 else f"user{self.writer}"

    @property
    def time_ms(self) -> int:
        """No two batches have the same; every tenth is from five batches ago."""
        number = self.number - 4.5 if self.number % LATE == LATE - 1 else self.number
        return START_MS + int(1000 * number) + self.writer

    @property
    def names(self) -> list[str]:
        """Item and event id of each event."""
        return [f"{self.writer}-{self.number}-{k}" for k in range(1 + self.number % 7)]

    @property
    def events(self) -> list[Event]:
        return [Event(name, self.time_ms, event_id=name) for name in self.names]


@dataclass
class Outcome:
    """What a run came to. append_s: seconds of each acknowledged append, retries included."""

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    disordered: int = 0
    invented: int = 0
    seconds: float = 0.0
    writers_killed: int = 0
    servers_killed: int = 0
    append_s: list[float] = field(default_factory=list)


@dataclass
class _Writer:
    process: ForkServerProcess
    acks: Connection
    acknowledged: int = 0


def write(opener: Opener, writer: int, first: int, acks: Connection) -> None:
    """Append batches until killed, telling the number of each once it is acknowledged; a store that is away is asked again."""
    store = None
    for number in range(first, 10**9):
        batch, began = Batch(writer, number), time.perf_counter()
        while True:
            try:
                store = store or opener()
                store.append(batch.user, batch.events)
                break
            except StoreUnavailable:
                time.sleep(RETRY_S)
        acks.send_bytes(_ACK.pack(number, len(batch.events), time.perf_counter() - began))


def run(
    opener: Opener, writers: int, events: int, kills: int, kill_every_s: float, kill_server: Callable[[], None] | None = None
) -> Outcome:
    """Writers append until `events` are acknowledged and `kills` have happened, of one of them or every third time of the server.

    kill_server: kill -9 and start again. Returns what a fresh reader finds after the last kill.
    """
    outcome, draw, began = Outcome(), random.Random(7), time.perf_counter()
    running = [_start(opener, writer, 0) for writer in range(writers)]
    next_kill, killed = time.perf_counter() + kill_every_s, 0
    while outcome.acknowledged < events or killed < kills:
        _drain(running, outcome, timeout_s=0.05)
        if time.perf_counter() >= next_kill:
            killed += 1
            if kill_server is not None and killed % 3 == 0:
                kill_server()
                outcome.servers_killed += 1
            else:
                victim = draw.randrange(writers)
                _kill(running[victim], outcome)
                running[victim] = _start(opener, victim, running[victim].acknowledged)
                outcome.writers_killed += 1
            next_kill = time.perf_counter() + draw.uniform(0.5, 1.5) * kill_every_s
    for writer in running:
        _kill(writer, outcome)
    outcome.seconds = time.perf_counter() - began
    if kill_server is not None:
        kill_server()
    with closing(opener()) as store:
        judge(store, [writer.acknowledged for writer in running], outcome)
    return outcome


def _start(opener: Opener, writer: int, first: int) -> _Writer:
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.durable", "seminar.history.opening", "seminar.history.redis_store"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=write, args=(opener, writer, first, send), daemon=True)
    process.start()
    send.close()
    return _Writer(process, receive, first)


def _drain(writers: list[_Writer], outcome: Outcome, timeout_s: float) -> None:
    for ready in wait([writer.acks for writer in writers], timeout_s):
        writer = next(writer for writer in writers if writer.acks is ready)
        while writer.acks.poll() and _take(writer, outcome):
            pass


def _take(writer: _Writer, outcome: Outcome) -> bool:
    try:
        number, events, seconds = _ACK.unpack(writer.acks.recv_bytes())
    except (EOFError, OSError):
        return False
    writer.acknowledged = number + 1
    outcome.acknowledged += events
    outcome.append_s.append(seconds)
    return True


def _kill(writer: _Writer, outcome: Outcome) -> None:
    writer.process.kill()
    writer.process.join()
    while _take(writer, outcome):
        pass
    writer.acks.close()


def judge(store: HistoryStore, acknowledged: list[int], outcome: Outcome) -> None:
    """acknowledged: batches of each writer. The one after them was under way, and may be there, whole."""
    expected: dict[str, list[Batch]] = {}
    under_way = {Batch(writer, number) for writer, number in enumerate(acknowledged)}
    for writer, number in enumerate(acknowledged):
        for batch in (Batch(writer, n) for n in range(number + 1)):
            expected.setdefault(batch.user, []).append(batch)
    for user, batches in expected.items():
        history = store.read(user)
        found = [str(name) for name in store.names_of("items", history.item_L)]
        there = Counter(found)
        kept = [b for b in sorted(batches, key=lambda b: b.time_ms) if b not in under_way or there[b.names[0]]]
        wanted = [name for batch in kept for name in batch.names]
        outcome.lost += sum(name not in there for name in wanted)
        outcome.duplicated += sum(count - 1 for count in there.values())
        outcome.invented += len(there.keys() - set(wanted))
        rank = {name: place for place, name in enumerate(wanted)}
        places = [rank[name] for name in found if name in rank]
        outcome.disordered += sum(after < before for before, after in pairwise(places))
