"""Heavy work beside live requests, in a thread that gives way to theirs: loading a bundle takes seconds of a core."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

NICENESS = 15
"""Added to the thread's own; Linux schedules threads one by one, elsewhere the thread is an ordinary one."""
T = TypeVar("T")


async def aside(function: Callable[..., T], *args: Any) -> T:
    """The result of `function(*args)`, from a thread made for it."""
    # Made anew each time: a thread may lower its own priority, but not raise it again.
    pool = ThreadPoolExecutor(1, "aside", initializer=give_way)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
    finally:
        pool.shutdown(wait=False)


def give_way(niceness: int = NICENESS) -> None:
    """Lower the priority of the calling thread, for good; 19 is the lowest."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + niceness))
