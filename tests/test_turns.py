"""Turns of the event loop: scores in order, and never only one side of the loop's work."""

import asyncio
import time
from contextvars import ContextVar

import pytest

from serve.turns import Turns


def test_results_come_in_order_each_in_its_callers_context() -> None:
    name: ContextVar[str] = ContextVar("name")
    order: list[str] = []

    async def one(turns: Turns, number: int) -> str:
        name.set(f"request {number}")
        return await turns.run(lambda: order.append(name.get()) or name.get())

    async def all_of_them() -> list[str]:
        turns = Turns()
        return await asyncio.gather(*(one(turns, number) for number in range(20)))

    expected = [f"request {number}" for number in range(20)]
    assert asyncio.run(all_of_them()) == expected
    assert order == expected


def test_an_error_is_its_callers_alone() -> None:
    async def both() -> list[object]:
        turns = Turns()
        return await asyncio.gather(turns.run(lambda: 1 // 0), turns.run(lambda: 5), return_exceptions=True)

    failed, fine = asyncio.run(both())
    assert isinstance(failed, ZeroDivisionError)
    assert fine == 5


@pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError(), GeneratorExit(), BaseException("of a library")])
def test_no_exception_whatever_stops_the_turns_of_others(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def both() -> list[object]:
        turns = Turns()
        first = await asyncio.wait_for(asyncio.gather(turns.run(fail), turns.run(lambda: 1), return_exceptions=True), 10)
        return [*first, await asyncio.wait_for(turns.run(lambda: 2), 10)]

    failed, *fine = asyncio.run(both())
    assert isinstance(failed, RuntimeError)
    assert fine == [1, 2]


def test_who_went_away_is_not_worked_for() -> None:
    ran: list[int] = []

    async def leave() -> None:
        turns = Turns()
        waiting = [asyncio.create_task(turns.run(ran.append, number)) for number in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(leave())
    assert ran == [0, 2]


def test_the_loop_looks_at_others_between_two_turns() -> None:
    """Else all that waits would be worked through before anything new is seen."""
    seen: list[str] = []

    async def other() -> None:
        for _ in range(3):
            seen.append("other")
            await asyncio.sleep(0)

    def work() -> None:
        seen.append("work")
        time.sleep(0.01)

    async def both() -> None:
        turns = Turns()
        await asyncio.gather(*(turns.run(work) for _ in range(3)), other())

    asyncio.run(both())
    assert seen == ["other", "work", "other", "work", "other", "work"]


def test_a_flood_of_others_leaves_a_share_of_the_time() -> None:
    """Between two turns the loop is busy for long: then a turn works through several."""

    async def flooded() -> tuple[float, float]:
        turns, spent = Turns(), {"work": 0.0, "flood": 0.0}

        def spend(what: str, seconds: float) -> None:
            began = time.perf_counter()
            time.sleep(seconds)
            spent[what] += time.perf_counter() - began

        async def flood() -> None:
            while True:
                spend("flood", 0.02)
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        await asyncio.gather(*(turns.run(spend, "work", 0.002) for _ in range(100)))
        flooding.cancel()
        return spent["work"], spent["flood"]

    worked, flooded_s = asyncio.run(flooded())
    assert worked >= 0.5 * flooded_s
