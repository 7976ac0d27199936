"""The 95th percentile of what a replica's newest requests took, for the autoscaling policy."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

WINDOW_S = 10.0
NEWEST = 1024
"""Requests remembered at most."""


class Latencies:
    """Milliseconds of the requests that ended within the last WINDOW_S seconds."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, float]] = deque(maxlen=NEWEST)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts what happens inside, however it ends."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(began, time.monotonic())

    def add(self, began: float, ended: float) -> None:
        """Seconds on the monotonic clock."""
        self._ended.append((ended, 1000 * (ended - began)))

    def p95_ms(self, now: float | None = None) -> float:
        """0 without requests."""
        since = (time.monotonic() if now is None else now) - WINDOW_S
        newest = sorted(ms for ended, ms in list(self._ended) if ended >= since)
        return newest[int(0.95 * (len(newest) - 1) + 0.5)] if newest else 0.0


class Timed:
    """Counts what every POST takes, from the first byte to the last; the reading routes say nothing of a scorer's load."""

    def __init__(self, app: ASGIApp, latencies: Callable[[], Latencies]) -> None:
        self._app, self._latencies = app, latencies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        with self._latencies().timed():
            await self._app(scope, receive, send)
