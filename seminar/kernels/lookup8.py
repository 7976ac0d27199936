"""Sums of looked-up bytes for 8-bit codes (up to 256 centroids): 64 bytes a behaviour at 64 sub-spaces, ten times a C++ gather.

A sub-space's 256 entries stand in four registers. vpermi2b looks up 64 codes in 128 entries; two of them and a blend on the
top bit of the code do all 256. Codes are 64 bytes of 64 behaviours a sub-space: a vector needs one table, sums stay in order.
AVX2 has 16-entry look-ups only: 16 of them and a tree of blends on the four high bits.
"""

from collections.abc import Callable
from typing import no_type_check

from llvmlite import ir
from numba.core import cgutils
from numba.extending import overload, register_jitable

from seminar.kernels.lookup import ByteSums, I8x16, Tile, make_pass, make_portable, make_tile
from seminar.kernels.simd import I32, I64, I8x32, I8x64, I16x16, I32x16, call, constant, load, offset, store

ROWS = 64
"""Behaviours a vector of codes."""
BLOCKS = 4
"""Vectors that share a table in registers: 26 us with one, 18 with two, 16 with four (10,240 behaviours, 64 sub-spaces)."""
ENTRIES = 256


def _tile(kind: ir.VectorType, blocks: int, look_up: Callable[[Tile, ir.Value, list[ir.Value]], list[ir.Value]]) -> Callable:
    """Scores of `blocks` vectors of codes of one target. kind: bytes a vector; look_up: entries of codes in a table."""

    def body(tile: Tile) -> None:
        builder, width = tile.builder, kind.count
        # Halves of a vector of codes (AVX2) are neighbours in memory, vectors a block of codes apart.
        row = builder.mul(builder.mul(tile.channels, tile.spaces), ir.Constant(I64, ROWS))
        pieces = [divmod(piece * width, ROWS) for piece in range(blocks * ROWS // width)]
        sums = [ByteSums(builder, ir.VectorType(I16x16.element, width // 2)) for _ in pieces]
        totals = [cgutils.alloca_once_value(builder, constant(I32x16, 0)) for _ in range(4 * blocks)]
        with cgutils.for_range(builder, tile.channels) as channel:
            for each in sums:
                each.clear()
            with cgutils.for_range(builder, tile.spaces) as space:
                vector = tile.vector(channel.index, space.index)
                code_at = tile.at(tile.code, vector, ROWS)
                codes = [load(builder, offset(builder, tile.at(code_at, row, b), within), kind) for b, within in pieces]
                for each, found in zip(sums, look_up(tile, tile.at(tile.table, vector, ENTRIES), codes), strict=True):
                    each.add(found)
            first = tile.start_of(channel.index, 0)
            parts = [part for each in sums for part in each.rows()]
            for i, (total, part) in enumerate(zip(totals, parts, strict=True)):
                (weight,) = tile.weights(channel.index, 1, 16 * i)
                tile.weigh(total, builder.add(part, first), weight)
        for i, total in enumerate(totals):
            store(builder, builder.load(total), offset(builder, tile.score, 64 * i))

    return body


def _look_up(tile: Tile, table_at: ir.Value, codes: list[ir.Value]) -> list[ir.Value]:
    """vpermi2b: 128 entries at once, twice."""
    builder, name = tile.builder, "llvm.x86.avx512.vpermi2var.qi.512"
    a, b, c, d = (load(builder, offset(builder, table_at, 64 * quarter), I8x64) for quarter in range(4))
    found = []
    for code in codes:
        lower, upper = call(builder, name, I8x64, [a, code, b]), call(builder, name, I8x64, [c, code, d])
        found.append(builder.select(builder.icmp_signed("<", code, constant(I8x64, 0)), upper, lower))
    return found


def _look_up_avx2(tile: Tile, table_at: ir.Value, codes: list[ir.Value]) -> list[ir.Value]:
    """vpshufb in each sixteenth of the table; pairs are chosen by bits 4, 5, 6 and 7 of the code."""
    builder, twice = tile.builder, ir.Constant(ir.VectorType(I32, 32), [i % 16 for i in range(32)])
    sixteenths = [load(builder, offset(builder, table_at, 16 * i), I8x16) for i in range(16)]
    tables = [builder.shuffle_vector(each, each, twice) for each in sixteenths]
    found = []
    for code in codes:
        low = builder.and_(code, constant(I8x32, 15))
        level = [call(builder, "llvm.x86.avx2.pshuf.b", I8x32, [table, low]) for table in tables]
        for bit in range(4, 8):
            # The bit that chooses is shifted to the top of its byte; what comes from the neighbour is below it.
            shifted = builder.shl(builder.bitcast(code, I16x16), constant(I16x16, 7 - bit))
            upper = builder.icmp_signed("<", builder.bitcast(shifted, I8x32), constant(I8x32, 0))
            level = [builder.select(upper, b, a) for a, b in zip(level[::2], level[1::2], strict=True)]
        found += level
    return found


_avx512 = make_pass(make_tile(_tile(I8x64, BLOCKS, _look_up)), ROWS, BLOCKS * ROWS, 1)
_avx2 = make_pass(make_tile(_tile(I8x32, 1, _look_up_avx2)), ROWS, ROWS, 1)


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@no_type_check
def score(tag, kind, code, table, start, weight, gate, first, length, scores):
    """As `lookup4.score`, for codes [blocks, S, 64] and tables [T, S, 256]; first and length are multiples of 256."""
    raise NotImplementedError


@no_type_check
def _score_avx512(tag, kind, code, table, start, weight, gate, first, length, scores):
    _avx512(kind, code, table, start, weight, gate, first, length, scores, 0, len(start))


@no_type_check
def _score_avx2(tag, kind, code, table, start, weight, gate, first, length, scores):
    _avx2(kind, code, table, start, weight, gate, first, length, scores, 0, len(start))


@register_jitable
@no_type_check
def _add(part, block, space, entry):
    own = block[space]
    for r in range(ROWS):
        part[r] += entry[own[r]]


_score_portable = make_portable(ROWS, _add)


@overload(score)
def _choose(tag, kind, code, table, start, weight, gate, first, length, scores):  # type: ignore[no-untyped-def]
    return (_score_portable, _score_avx2, _score_avx512)[len(tag)]
