"""Spans of the stages, under the span that Ray Serve makes of a request; they cost half a microsecond where nothing is traced."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from opentelemetry import trace

TRACER = "seminar"


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """A child of the current span, if that one is recorded: sampling is decided where a request comes in."""
    if not trace.get_current_span().is_recording():
        yield
        return
    with trace.get_tracer(TRACER).start_as_current_span(name, attributes=attributes):
        yield


def timed(stage: str, function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The result and the milliseconds it took, as a span of that name."""
    with span(stage):
        began = time.perf_counter()
        result = function(*args)
        return result, 1000 * (time.perf_counter() - began)


async def in_thread(executor: Executor, function: Callable[..., Any], *args: Any) -> Any:
    """Run it in one of the executor's threads, with the context (record, span) of the caller."""
    return await asyncio.get_running_loop().run_in_executor(executor, copy_context().run, function, *args)
