"""Work beside live requests."""

import asyncio
import os
import sys
import threading

import pytest

from serve.aside import NICENESS, aside


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_work_aside_gives_way_and_leaves_the_others_as_they_were() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert asyncio.run(aside(niceness)) == min(19, before + NICENESS)
    assert niceness() == before


def test_work_aside_gives_its_result_or_raises_while_others_go_on() -> None:
    async def both() -> tuple[int, list[int]]:
        entered, leave, ticks = threading.Event(), threading.Event(), []

        def work(number: int) -> int:
            entered.set()
            leave.wait(10)
            return number + 1

        task = asyncio.create_task(aside(work, 1))
        while not entered.is_set() or len(ticks) < 3:
            ticks.append(len(ticks))
            await asyncio.sleep(0.001)
        leave.set()
        return await task, ticks

    result, ticks = asyncio.run(both())
    assert result == 2
    assert len(ticks) >= 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(aside(lambda: 1 // 0))
