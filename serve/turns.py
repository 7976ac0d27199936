"""Work in the event loop itself, in turns with everything else that the loop does.

Between two turns the loop looks at its sockets: what came is counted by Serve, which refuses what is too much, and what was
answered leaves. A flood of requests to be refused could take all of its time, so a turn lasts at least as long as the loop was
busy with others since the one before; half of a replica's time scores, as far as there is something to score.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any


class Turns:
    """Runs functions in the event loop, one after another, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._ended_s = 0.0

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Its result, once its turn has come; it sees the context (record, span) of the caller."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        if not self._waiting:
            self._ended_s = time.perf_counter()
            loop.call_soon(self._turn, loop)
        context = copy_context()
        self._waiting.append((done, lambda: context.run(function, *args)))
        return await done

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        began_s = time.perf_counter()
        others_s = began_s - self._ended_s
        try:
            while self._waiting:
                self._next()
                if time.perf_counter() - began_s >= others_s:
                    break
        finally:
            # Whatever happened in it, this turn was not the last one.
            self._ended_s = time.perf_counter()
            if self._waiting:
                loop.call_soon(self._turn, loop)

    def _next(self) -> None:
        done, work = self._waiting.popleft()
        # Nobody waits for it any more: the client went away.
        if done.cancelled():
            return
        try:
            done.set_result(work())
        except (SystemExit, KeyboardInterrupt) as error:
            done.set_exception(RuntimeError(f"interrupted by {error!r}"))
            raise
        except BaseException as error:
            # A future takes no StopIteration, and whoever waits must not take another's cancellation for his own.
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            done.set_exception(error if plain else RuntimeError(f"{type(error).__name__} while scoring"))
