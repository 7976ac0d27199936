"""Sums of looked-up bytes for 4-bit codes (16 centroids): 32 bytes a behaviour at 64 sub-spaces, 128 look-ups by 7 instructions.

Every table stands in a register: 64 bytes hold the 16 entries of four sub-spaces, vpermb looks up 64 codes at once, vpdpbusd adds
four of them to a behaviour's sum. A vector of codes holds 32 behaviours, 16 in the low nibbles and 16 in the high; four targets
share the work of taking it apart. Within a half, bytes are [16 behaviours][4 sub-spaces] for vpermb and [4][16] otherwise: AVX2's
vpshufb looks up one table a 128-bit lane.
"""

from collections.abc import Callable
from typing import no_type_check

from llvmlite import ir
from numba.core import cgutils
from numba.extending import overload, register_jitable

from seminar.kernels.lookup import ByteSums, Tile, make_pass, make_portable, make_tile
from seminar.kernels.simd import (
    I64,
    I8x32,
    I8x64,
    I16x16,
    I16x32,
    I32x16,
    call,
    constant,
    dot_bytes,
    load,
    look_up_bytes,
    offset,
    store,
)

ROWS = 32
"""Behaviours a vector of codes."""
GROUP = 4
"""Sub-spaces a vector of codes; channels are padded to whole groups."""
TARGETS = 4
"""Targets that share one pass over the codes."""


def _tile(blocks: int, targets: int) -> Callable[[Tile], None]:
    """Scores of 32 * blocks behaviours for `targets` targets, by vpermb and vpdpbusd."""

    def body(tile: Tile) -> None:
        builder, halves = tile.builder, range(2 * blocks)
        totals = [[cgutils.alloca_once_value(builder, constant(I32x16, 0)) for _ in halves] for _ in range(targets)]
        parts = [[cgutils.alloca_once(builder, I32x16) for _ in halves] for _ in range(targets)]
        row = builder.mul(builder.mul(tile.channels, tile.spaces), ir.Constant(I64, 64))
        with cgutils.for_range(builder, tile.channels) as channel:
            for t in range(targets):
                first = tile.start_of(channel.index, t)
                for h in halves:
                    builder.store(first, parts[t][h])
            with cgutils.for_range(builder, tile.spaces) as group:
                vector = tile.vector(channel.index, group.index)
                index = _indices(tile, tile.at(tile.code, vector, 64), row, blocks)
                for t in range(targets):
                    entries = load(builder, tile.at(tile.at(tile.table, vector, 64), row, t), I8x64)
                    for h in halves:
                        found = look_up_bytes(builder, entries, index[h])
                        total = dot_bytes(builder, builder.load(parts[t][h]), found, constant(I8x64, 1))
                        builder.store(total, parts[t][h])
            for h in halves:
                for t, weight in enumerate(tile.weights(channel.index, targets, 16 * h)):
                    tile.weigh(totals[t][h], builder.load(parts[t][h]), weight)
        for t in range(targets):
            to = tile.at(tile.score, tile.score_stride, 4 * t)
            for h in halves:
                store(builder, builder.load(totals[t][h]), offset(builder, to, 64 * h))

    return body


def _indices(tile: Tile, code_at: ir.Value, row: ir.Value, blocks: int) -> list[ir.Value]:
    """What to look up in a table of four sub-spaces side by side: a nibble, plus 16 times the sub-space."""
    builder, nibble, corner = tile.builder, constant(I8x64, 15), constant(I8x64, [0, 16, 32, 48] * 16)
    halves = []
    for b in range(blocks):
        low = load(builder, tile.at(code_at, row, b), I8x64)
        high = builder.lshr(builder.bitcast(low, I16x32), constant(I16x32, 4))
        halves += [low, builder.bitcast(high, I8x64)]
    return [builder.or_(builder.and_(half, nibble), corner) for half in halves]


def _tile_avx2(tile: Tile) -> None:
    """As `_tile` for 32 behaviours and one target: each 128-bit lane looks up 16 codes of its own sub-space."""
    builder = tile.builder
    totals = [cgutils.alloca_once_value(builder, constant(I32x16, 0)) for _ in range(2)]
    sums = [ByteSums(builder, I16x16) for _ in range(2)]
    with cgutils.for_range(builder, tile.channels) as channel:
        for each in sums:
            each.clear()
        with cgutils.for_range(builder, tile.spaces) as group:
            vector = tile.vector(channel.index, group.index)
            code_at, table_at = tile.at(tile.code, vector, 64), tile.at(tile.table, vector, 64)
            for pair in range(2):
                low = load(builder, offset(builder, code_at, 32 * pair), I8x32)
                high = builder.lshr(builder.bitcast(low, I16x16), constant(I16x16, 4))
                entries = load(builder, offset(builder, table_at, 32 * pair), I8x32)
                for each, half in zip(sums, (low, builder.bitcast(high, I8x32)), strict=True):
                    index = builder.and_(half, constant(I8x32, 15))
                    each.add(call(builder, "llvm.x86.avx2.pshuf.b", I8x32, [entries, index]))
        first = tile.start_of(channel.index, 0)
        for h, each in enumerate(sums):
            (weight,) = tile.weights(channel.index, 1, 16 * h)
            tile.weigh(totals[h], builder.add(each.rows_of_lanes(), first), weight)
    for h, total in enumerate(totals):
        store(builder, builder.load(total), offset(builder, tile.score, 64 * h))


_four = make_pass(make_tile(_tile(1, TARGETS)), ROWS, ROWS, TARGETS)
_one = make_pass(make_tile(_tile(2, 1)), ROWS, 2 * ROWS, 1)
_avx2 = make_pass(make_tile(_tile_avx2), ROWS, ROWS, 1)


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@no_type_check
def score(tag, kind, code, table, start, weight, gate, first, length, scores):
    """scores[t, :length] of behaviours first .. first + length - 1, multiples of 64, for the targets of table [T, S, 16].

    tag (simd.TAGS) chooses the path. code: [blocks, groups, 64]. start: int32 [T, M]. weight: bytes [M, L], patterns [1, L] that
    gate [T, M, 16] turns into weights, or nothing, by kind.
    """
    raise NotImplementedError


@no_type_check
def _score_avx512(tag, kind, code, table, start, weight, gate, first, length, scores):
    together = len(start) // TARGETS * TARGETS
    _four(kind, code, table, start, weight, gate, first, length, scores, 0, together)
    _one(kind, code, table, start, weight, gate, first, length, scores, together, len(start))


@no_type_check
def _score_avx2(tag, kind, code, table, start, weight, gate, first, length, scores):
    _avx2(kind, code, table, start, weight, gate, first, length, scores, 0, len(start))


@register_jitable
@no_type_check
def _add(part, block, space, entry):
    own = block[space // GROUP, space % GROUP * 16 : space % GROUP * 16 + 16]
    for r in range(16):
        part[r] += entry[own[r] & 15]
        part[16 + r] += entry[own[r] >> 4]


_score_portable = make_portable(ROWS, _add)


@overload(score)
def _choose(tag, kind, code, table, start, weight, gate, first, length, scores):  # type: ignore[no-untyped-def]
    return (_score_portable, _score_avx2, _score_avx512)[len(tag)]
