"""Timing on a machine that others use too: methods in turns, bursts of calls, thread CPU time, quantiles; and the floors."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seminar.kernels.simd import I32, I8x64, I32x16, available, constant, dot_bytes

BURST = 5
"""Calls in a row: the first of them finds cold caches, and its time is kept apart."""


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call. low: 20th percentile, what comparisons use; cold: median of first calls of a burst."""

    low: float
    median: float
    high: float
    cold: float

    def per(self, count: int) -> "Timing":
        """Of one of `count` equal parts of a call."""
        return Timing(*(value / count for value in (self.low, self.median, self.high, self.cold)))


SLOW_NS = 30_000_000
"""A method whose call takes longer is called twice a round, and in the first two rounds only."""


def interleaved(methods: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Each method in bursts, round after round, until `seconds` a method have passed (at least three rounds)."""
    warm: dict[str, list[int]] = {name: [] for name in methods}
    cold: dict[str, list[int]] = {name: [] for name in methods}
    slow = set()
    for name, method in methods.items():
        method()  # compiles what is compiled at first call
        if _thread_ns(method) > SLOW_NS:
            slow.add(name)
    until = time.perf_counter() + seconds * len(methods)
    rounds = 0
    while rounds < 3 or time.perf_counter() < until:
        rounds += 1
        for name, method in methods.items():
            if name in slow and rounds > 2:
                continue
            for call in range(2 if name in slow else BURST):
                (warm if call else cold)[name].append(_thread_ns(method))
    return {name: _timing(warm[name], cold[name]) for name in methods}


def _timing(warm_ns: list[int], cold_ns: list[int]) -> Timing:
    low, median, high = (np.quantile(warm_ns, [0.2, 0.5, 0.8]) / 1e3).tolist()
    return Timing(low, median, high, float(np.median(cold_ns)) / 1e3)


def _thread_ns(method: Callable[[], object]) -> int:
    began = time.thread_time_ns()
    method()
    return time.thread_time_ns() - began


@dataclass(frozen=True)
class Floors:
    """What this processor can at most, one thread. dot_bytes: vpdpbusd (64 multiply-adds) a microsecond, 0 where it has none;
    read: bytes a microsecond summed from 256 KiB, 8 MiB and 256 MiB."""

    dot_bytes: float
    read: dict[str, float]

    def scoring_us(self, length: int, dim: int) -> float:
        """Least time for 8-bit inner products of one target with `length` keys: an instruction has 64 products."""
        return length * dim / 64 / self.dot_bytes if self.dot_bytes else float("nan")


@lru_cache(maxsize=1)
def floors() -> Floors:
    """Measured now: best of several runs."""
    read = {}
    for name, size in {"256 KiB": 1 << 18, "8 MiB": 1 << 23, "256 MiB": 1 << 28}.items():
        block = np.ones(size // 8, np.int64)
        repeats = max(1, (1 << 27) // size)
        read[name] = size * repeats / _best(lambda block=block, repeats=repeats: _sum(block, repeats))
    calls = 200_000
    return Floors(16 * calls / _best(lambda: _dot_chain(calls)) if "avx512" in available() else 0.0, read)


def _best(function: Callable[[], object]) -> float:
    """Microseconds of the fastest of five calls."""
    function()
    times = []
    for _ in range(5):
        began = time.thread_time_ns()
        function()
        times.append(time.thread_time_ns() - began)
    return min(times) / 1e3


@numba.njit
@no_type_check
def _sum(block, repeats):
    total = 0
    for r in range(repeats):
        for i in range(len(block)):
            total += block[i] ^ r
    return total


@intrinsic
def _dots(typing_context: Any, count: Any) -> Any:
    """16 independent chains of vpdpbusd."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        totals = [cgutils.alloca_once_value(builder, constant(I32x16, 0)) for _ in range(16)]
        unsigned, signed = (cgutils.alloca_once_value(builder, constant(I8x64, 3)) for _ in range(2))
        with cgutils.for_range(builder, arguments[0]):
            for total in totals:
                value = dot_bytes(builder, builder.load(total), builder.load(unsigned), builder.load(signed))
                builder.store(value, total)
        result = builder.load(totals[0])
        for total in totals[1:]:
            result = builder.add(result, builder.load(total))
        return builder.extract_element(result, ir.Constant(I32, 0))

    return types.int32(types.intp), generate


@numba.njit
@no_type_check
def _dot_chain(count):
    return _dots(count)
