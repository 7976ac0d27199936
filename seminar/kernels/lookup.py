"""What both look-up kernels share: the shape of a tile, how a channel's sums are weighed, how bytes are added up without VNNI.

    score[t, n] = sum_j weight[t, n, j] (start[t, j] + sum_s table[t, j, s, code[n, j, s]])

in integers: table entries and weights are unsigned bytes, sums have 32 bits. Weights come in three kinds: none (folded into the
table), planes [M, L] of the behaviours' own, or a target's by which channels a behaviour has: 16 patterns of 4 channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from seminar.kernels.simd import I8, I16, I32, I64, I32x16, call, constant, load, offset, splat

I8x16, I16x8 = ir.VectorType(I8, 16), ir.VectorType(I16, 8)
ONES, PLANES, PATTERNS = (), (0,), (0, 0)
"""Kinds of weights: tuples of different length, so that each kind is compiled by itself."""
PATTERN_LIMIT = 16
"""Presence patterns that one byte shuffle tells apart: those of 4 channels."""


@dataclass(frozen=True)
class Tile:
    """Where a tile reads and writes: addresses, and sizes in elements. `spaces`: vectors of codes a channel."""

    builder: ir.IRBuilder
    kind: int
    code: ir.Value
    table: ir.Value
    start: ir.Value
    weight: ir.Value
    gate: ir.Value
    score: ir.Value
    channels: ir.Value
    spaces: ir.Value
    weight_stride: ir.Value
    score_stride: ir.Value

    def at(self, base: ir.Value, index: ir.Value, stride: int) -> ir.Value:
        """Address base + index * stride bytes."""
        return self.builder.add(base, self.builder.mul(index, ir.Constant(I64, stride)))

    def of_target(self, channel: ir.Value, target: int) -> ir.Value:
        """Row of [T, channels]."""
        return self.builder.add(channel, self.builder.mul(self.channels, ir.Constant(I64, target)))

    def vector(self, channel: ir.Value, space: ir.Value) -> ir.Value:
        """Number of a vector of codes within its block."""
        return self.builder.add(self.builder.mul(channel, self.spaces), space)

    def start_of(self, channel: ir.Value, target: int) -> ir.Value:
        """What a target's sums of one channel start from, 16 times."""
        word = load(self.builder, self.at(self.start, self.of_target(channel, target), 4), I32)
        return splat(self.builder, word, I32x16)

    def weights(self, channel: ir.Value, targets: int, first: int) -> list[Any]:
        """For each target the weights (bytes) of 16 behaviours, from number `first` of the tile on; None for 1."""
        if self.kind == len(ONES):
            return [None] * targets
        here = offset(self.builder, self.weight, first)
        if self.kind == len(PLANES):
            plane = self.builder.add(here, self.builder.mul(channel, self.weight_stride))
            return [load(self.builder, plane, I8x16)] * targets
        pattern = load(self.builder, here, I8x16)
        gates = [load(self.builder, self.at(self.gate, self.of_target(channel, t), PATTERN_LIMIT), I8x16) for t in range(targets)]
        return [call(self.builder, "llvm.x86.ssse3.pshuf.b.128", I8x16, [gate, pattern]) for gate in gates]

    def weigh(self, total: ir.Value, part: ir.Value, weight: ir.Value | None) -> None:
        """Add weight * part of 16 behaviours to a total in memory."""
        scaled = part if weight is None else self.builder.mul(part, self.builder.zext(weight, I32x16))
        self.builder.store(self.builder.add(self.builder.load(total), scaled), total)


def make_tile(body: Callable[[Tile], None]) -> Any:
    """A function for numba, tile(kind, where, size), from what builds its instructions.

    where: addresses of code, table, start, weight, gate, score. size: channels, spaces, weight and score strides.
    """

    @intrinsic
    def tile(typing_context: Any, kind: Any, where: Any, size: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            _, addresses, sizes = arguments
            body(Tile(builder, len(kind), *cgutils.unpack_tuple(builder, addresses), *cgutils.unpack_tuple(builder, sizes)))
            return context.get_dummy_value()

        return types.void(kind, where, size), generate

    return tile


class ByteSums:
    """Sums of vectors of unsigned bytes in 16 bits: words as they are, and their high bytes apart.

    Two additions and a shift a vector; at most 257 vectors.
    """

    def __init__(self, builder: ir.IRBuilder, kind: ir.VectorType) -> None:
        self._builder, self._kind = builder, kind
        self._word, self._high = cgutils.alloca_once(builder, kind), cgutils.alloca_once(builder, kind)

    def clear(self) -> None:
        """Start at 0."""
        for total in (self._word, self._high):
            self._builder.store(constant(self._kind, 0), total)

    def add(self, found: ir.Value) -> None:
        """Add a vector of bytes."""
        word = self._builder.bitcast(found, self._kind)
        high = self._builder.lshr(word, constant(self._kind, 8))
        for total, term in ((self._word, word), (self._high, high)):
            self._builder.store(self._builder.add(self._builder.load(total), term), total)

    def rows(self) -> list[ir.Value]:
        """The sums as int32, 16 a vector, in the order of the bytes."""
        return self._in_order(self._builder.load(self._word), self._builder.load(self._high))

    def rows_of_lanes(self) -> ir.Value:
        """The sums of 16 rows that both 128-bit lanes of a 256-bit vector stand for."""
        word, high = (self._builder.load(total) for total in (self._word, self._high))
        lanes = [[self._shuffle(x, x, range(lane, lane + 8)) for lane in (0, 8)] for x in (word, high)]
        return self._in_order(*(self._builder.add(*pair) for pair in lanes))[0]

    def _in_order(self, word: ir.Value, odd: ir.Value) -> list[ir.Value]:
        even = self._builder.sub(word, self._builder.shl(odd, constant(word.type, 8)))
        pairs = word.type.count
        order = [half * pairs + i for i in range(pairs) for half in range(2)]
        return [self._builder.zext(self._shuffle(even, odd, order[i : i + 16]), I32x16) for i in range(0, 2 * pairs, 16)]

    def _shuffle(self, a: ir.Value, b: ir.Value, order: Any) -> ir.Value:
        return self._builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@no_type_check
def make_pass(tile, rows, step, together):
    """A pass over the codes for targets begin .. end - 1, `together` at a time; a tile scores `step` behaviours.

    rows: behaviours a vector of codes. The arguments of a pass are those of `lookup4.score`.
    """

    @register_jitable
    @no_type_check
    def run(kind, code, table, start, weight, gate, first, length, scores, begin, end):
        channels, stride = start.shape[1], scores.shape[1]
        block, entries = code.shape[1] * code.shape[2], table.shape[1] * table.shape[2]
        size = (channels, code.shape[1] // channels, weight.shape[1], stride)
        code_at, weight_at = code.ctypes.data + first // rows * block, weight.ctypes.data + first
        for t in range(begin, end, together):
            table_at, start_at = table.ctypes.data + t * entries, start.ctypes.data + 4 * t * channels
            gate_at, score_at = gate.ctypes.data + PATTERN_LIMIT * t * channels, scores.ctypes.data + 4 * t * stride
            for n in range(0, length, step):
                here = code_at + n // rows * block
                tile(kind, (here, table_at, start_at, weight_at + n, gate_at, score_at + 4 * n), size)

    return run


@no_type_check
def make_portable(rows, look_up):
    """The same scores by plain loops. look_up(part, block, space, entry): adds what a vector of `rows` codes finds in a table."""

    @no_type_check
    def score(tag, kind, code, table, start, weight, gate, first, length, scores):
        targets, channels = start.shape
        spaces = table.shape[1] // channels
        part = np.empty(rows, np.int32)
        for t in range(targets):
            for n in range(0, length, rows):
                block = code[(first + n) // rows]
                scores[t, n : n + rows] = 0
                for j in range(channels):
                    part[:] = start[t, j]
                    for s in range(j * spaces, (j + 1) * spaces):
                        look_up(part, block, s, table[t, s])
                    for r in range(rows):
                        scores[t, n + r] += part[r] * weight_of(kind, weight, gate, t, j, first + n + r)

    return score


@no_type_check
def weight_of(kind, weight, gate, target, channel, position):
    """Weight of one behaviour and channel, in plain code."""
    raise NotImplementedError


@no_type_check
def _one(kind, weight, gate, target, channel, position):
    return np.int32(1)


@no_type_check
def _of_plane(kind, weight, gate, target, channel, position):
    return np.int32(weight[channel, position])


@no_type_check
def _of_pattern(kind, weight, gate, target, channel, position):
    return np.int32(gate[target, channel, weight[0, position]])


@overload(weight_of)
def _choose_weight(kind, weight, gate, target, channel, position):  # type: ignore[no-untyped-def]
    return (_one, _of_plane, _of_pattern)[len(kind)]
