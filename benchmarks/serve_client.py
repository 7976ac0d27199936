"""The load generator, a process of its own: HTTP/1.1 over kept connections of this machine, bounded in count and in time.

    python -m benchmarks.serve_client PLAN.json

Closed loop: `concurrency` connections, each sends its next request when its answer is there. Open loop: Poisson arrivals at
`rate`, latency counted from the moment a request was due, also when all connections were busy then: a slow service cannot slow
the clock it is measured by. Plain asyncio protocols on uvloop; what it costs itself is measured and reported.
"""

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.histogram import Histogram

HOST = "127.0.0.1"
MAX_REQUESTS = 200_000
MAX_SECONDS = 120.0
MAX_CONNECTIONS = 1000
DRAIN_S = 20.0
READ_WHOLE = 20
_SCORES = re.compile(rb'"scores":\[([-+0-9.eE,]*)\]')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """One block of load. requests: file of `session id, tab, JSON body` lines; an empty body makes it a GET.

    concurrency: closed loop; rate: open loop, requests a second. once: each line once, in order. scores: numbers that every
    answer must hold, 0 where none are expected. session: send x-session-id. drain_s: answers may come that long after the end.
    """

    port: int
    path: str
    requests: str
    seconds: float
    concurrency: int = 0
    rate: float = 0.0
    once: bool = False
    scores: int = 0
    session: bool = True
    seed: int = 0
    drain_s: float = DRAIN_S
    max_requests: int = MAX_REQUESTS


@dataclass
class Result:
    """What a block gave. seconds: first request due to last answer. cpu_s: of this process. refused: 503 with Retry-After.

    resent: requests whose kept connection was closed before a byte of the answer, sent again as every HTTP client does.
    inside_ms: what the answers that were read whole say of GSU and ESU together.
    """

    latency: dict[int, int]
    seconds: float
    sent: int
    good: int
    refused: int
    resent: int
    statuses: dict[str, int]
    failures: list[str]
    cpu_s: float
    inside_ms: list[float]


class Load:
    """Sends the requests of a plan and judges the answers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._wires = _wires(plan)
        self._draw = random.Random(plan.seed)
        self._limit = min(plan.max_requests, len(self._wires) if plan.once else MAX_REQUESTS)
        self.sent = self.good = self.refused = self.resent = 0
        self.statuses: Counter[str] = Counter()
        self.failures: list[str] = []
        self.latencies: list[float] = []
        self.inside_ms: list[float] = []
        self._idle: list[Connection] = []
        self._due: deque[float] = deque()
        self.open = 0
        self.last = 0.0

    async def run(self) -> Result:
        """The whole block; answers still missing drain_s after its end are failures."""
        plan, self._loop = self.plan, asyncio.get_running_loop()
        for _ in range(plan.concurrency or 8):
            self._idle.append(await self._connect())
        began = time.perf_counter()
        self._stop = began + min(plan.seconds, MAX_SECONDS)
        cpu = time.process_time()
        await (self._closed() if plan.concurrency else self._arrive())
        missing = self.open + len(self._due)
        if missing:
            self.failures.append(f"{missing} answers missing {plan.drain_s:.0f} s after the end")
        return Result(
            latency=dict(Histogram.of(self.latencies).counts),
            seconds=max(self.last, 0.0 if plan.once else self._stop) - began,
            sent=self.sent,
            good=self.good,
            refused=self.refused,
            resent=self.resent,
            statuses=dict(self.statuses),
            failures=self.failures[:20],
            cpu_s=time.process_time() - cpu,
            inside_ms=self.inside_ms,
        )

    async def _closed(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle[: self._limit]:
            self._send(connection, time.perf_counter())
        await self._rest()

    async def _rest(self) -> None:
        """Until all is answered, or too late."""
        while time.perf_counter() < self._stop + self.plan.drain_s:
            due = self.plan.concurrency and time.perf_counter() < self._stop and self.sent < self._limit
            if not (self.open or self._due or due):
                break
            await asyncio.sleep(0.005)

    async def _arrive(self) -> None:
        due = time.perf_counter()
        while due < self._stop and self.sent + len(self._due) < self._limit:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self._due.append(due)
            if not self._idle and self.open < MAX_CONNECTIONS:
                self._idle.append(await self._connect())
            # An answer that came meanwhile may have sent it already.
            if self._idle and self._due:
                self._send(self._idle.pop(), self._due.popleft())
            due += self._draw.expovariate(self.plan.rate)
        await self._rest()

    async def _connect(self) -> "Connection":
        _, connection = await self._loop.create_connection(lambda: Connection(self), HOST, self.plan.port)
        return connection

    async def _resend(self, lost: "Connection") -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            self.open -= 1
            self.failures.append(f"no connection: {error}")
        else:
            connection.send(lost.wire, lost.due)

    def _send(self, connection: "Connection", due: float) -> None:
        wire = self._wires[self.sent if self.plan.once else self._draw.randrange(len(self._wires))]
        self.sent += 1
        self.open += 1
        connection.send(wire, due)

    def answered(self, connection: "Connection", status: bytes, head: bytes, body: bytes) -> None:
        """Judge an answer and give its connection the next request."""
        self.last = time.perf_counter()
        self.open -= 1
        self.statuses[status.decode()] += 1
        if status == b"200" and self._holds(body):
            self.good += 1
            self.latencies.append(self.last - connection.due)
        elif status == b"503" and b"retry-after:" in head.lower():
            self.refused += 1
        else:
            self.failures.append(f"{status.decode()} {body[:300].decode(errors='replace')}")
        if b"connection: close" in head.lower():
            self._loop.create_task(self._replace())
        else:
            self._next(connection)

    async def _replace(self) -> None:
        self._next(await self._connect())

    def _next(self, connection: "Connection") -> None:
        if self._due:
            self._send(connection, self._due.popleft())
        elif self.plan.concurrency and self.last < self._stop and self.sent < self._limit:
            self._send(connection, time.perf_counter())
        else:
            self._idle.append(connection)

    def lost(self, connection: "Connection", answering: bool) -> None:
        """A connection that broke; a request on it that was being answered is a failure."""
        if connection in self._idle:
            self._idle.remove(connection)
        elif connection.busy and not answering:
            self.resent += 1
            self._loop.create_task(self._resend(connection))
        elif connection.busy:
            self.open -= 1
            self.failures.append("connection closed in the middle of an answer")

    def _holds(self, body: bytes) -> bool:
        if not self.plan.scores:
            return True
        found = _SCORES.search(body)
        # NaN and null do not match; every READ_WHOLE-th answer is read whole.
        if found is None or found[1].count(b",") != self.plan.scores - 1:
            return False
        if self.sent % READ_WHOLE:
            return True
        answer = json.loads(body)
        timings = answer.get("timings_ms", {})
        self.inside_ms.append(timings.get("retrieve", 0.0) + timings.get("rank", 0.0))
        return all(0 < score < 1 for score in answer["scores"])


@dataclass(eq=False)
class Connection(asyncio.Protocol):
    """One kept connection with at most one request on it."""

    load: Load
    due: float = 0.0
    wire: bytes = b""
    busy: bool = False
    _read: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, wire: bytes, due: float) -> None:
        self.due, self.wire, self.busy = due, wire, True
        self._transport.write(wire)

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._read[:end])
        length = _LENGTH.search(head)
        if length is None:
            if not self._read.endswith(b"0\r\n\r\n"):
                return
        elif len(self._read) < end + 4 + int(length[1]):
            return
        body = bytes(self._read[end + 4 :])
        self._read.clear()
        self.busy = False
        self.load.answered(self, head[9:12], head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost(self, bool(self._read))


def _wires(plan: Plan) -> list[bytes]:
    """Requests as they go over the wire."""
    wires = []
    for line in Path(plan.requests).read_text().splitlines():
        session, body = line.split("\t", 1)
        head = [f"{'POST' if body else 'GET'} {plan.path} HTTP/1.1", f"Host: {HOST}:{plan.port}"]
        head += [f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}"] if body else []
        head += [f"X-Session-Id: {session}"] if plan.session else []
        wires.append("\r\n".join([*head, "", body]).encode())
    return wires


def main() -> None:
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(asdict(uvloop.run(Load(plan).run()))))


if __name__ == "__main__":
    main()
