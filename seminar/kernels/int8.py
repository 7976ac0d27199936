"""Inner products of signed 8-bit targets with unsigned 8-bit keys, fused with top-K: 64 bytes a behaviour at d = 64.

Keys are stored as key + 128 in blocks of 16 behaviours, [block][d/4][16][4], so that one 64-byte load holds four dimensions of 16
behaviours: what vpdpbusd multiplies with four broadcast bytes of a target. 8 targets share each load. Of a long history a block
of rows stays in the second-level cache while all targets pass over it.
"""

from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from seminar.kernels.select import LEAST, STRIDE, admit, cut_back, first_threshold, ordered, unordered
from seminar.kernels.simd import (
    I8,
    I32,
    I64,
    I8x64,
    I16x16,
    I32x8,
    I32x16,
    call,
    constant,
    dot_bytes,
    load,
    offset,
    splat,
    store,
)

LANES = 16
"""Behaviours a block of the layout."""
TARGETS = 8
"""Targets that share one pass over the keys."""
ROWS = 8192
"""Most behaviours of a cache block that several targets share: 512 KiB of keys at d = 64, beside their scores."""


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """An integer address as a pointer to bytes."""
    kind = types.CPointer(types.uint8)
    return kind(types.intp), lambda context, builder, signature, args: builder.inttoptr(args[0], I8.as_pointer())


def cache_rows(length: int, targets: int) -> int:
    """Behaviours a pass: blocks of equal size that stay in the second-level cache; one target has nothing to come back for."""
    most = ROWS if targets > 1 else 4 * ROWS
    blocks = max(1, -(-length // most))
    return max(1, -(-length // (blocks * STRIDE))) * STRIDE


def _totals(builder: ir.IRBuilder, start_at: ir.Value, kind: ir.VectorType, targets: int, each: int) -> list[ir.Value]:
    """Running sums, `each` vectors a target, which begin at the target's start."""
    starts = [splat(builder, load(builder, offset(builder, start_at, 4 * t), I32), kind) for t in range(targets)]
    return [cgutils.alloca_once_value(builder, start) for start in starts for _ in range(each)]


def _tile(rows: int, targets: int) -> Any:
    """Scores of 16 * rows behaviours for `targets` targets: score[t, r] = start[t] + sum_i query[t, i] stored[r, i]."""

    @intrinsic
    def tile(typing_context: Any, keys: Any, query: Any, start: Any, score: Any, words: Any, length: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            key_at, query_at, start_at, score_at, num_words, stride = arguments
            totals = _totals(builder, start_at, I32x16, targets, rows)
            block = builder.mul(num_words, ir.Constant(I64, 64))
            width = builder.mul(num_words, ir.Constant(I64, 4))
            with cgutils.for_range(builder, num_words) as loop:
                here = builder.add(key_at, builder.mul(loop.index, ir.Constant(I64, 64)))
                key = [load(builder, builder.add(here, builder.mul(block, ir.Constant(I64, r))), I8x64) for r in range(rows)]
                word_at = builder.add(query_at, builder.mul(loop.index, ir.Constant(I64, 4)))
                for t in range(targets):
                    word = load(builder, builder.add(word_at, builder.mul(width, ir.Constant(I64, t))), I32)
                    asked = builder.bitcast(splat(builder, word, I32x16), I8x64)
                    for r in range(rows):
                        total = totals[t * rows + r]
                        builder.store(dot_bytes(builder, builder.load(total), key[r], asked), total)
            for t in range(targets):
                row_at = builder.add(score_at, builder.mul(stride, ir.Constant(I64, 4 * t)))
                for r in range(rows):
                    store(builder, builder.load(totals[t * rows + r]), offset(builder, row_at, 64 * r))
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.uintp, types.uintp, types.intp, types.intp), generate

    return tile


_tile_8 = _tile(2, TARGETS)
# One row of blocks reads memory in order: 25 GB/s of it instead of 10 with four, and no less from cache.
_tile_1 = _tile(1, 1)


def _tile_avx2(targets: int) -> Any:
    """As `_tile` for 16 behaviours: even and odd bytes apart in 16 bits, where vpmaddwd cannot saturate."""

    @intrinsic
    def tile(typing_context: Any, keys: Any, query: Any, start: Any, score: Any, words: Any, length: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            key_at, query_at, start_at, score_at, num_words, stride = arguments
            totals = _totals(builder, start_at, I32x8, targets, 2)
            width = builder.mul(num_words, ir.Constant(I64, 4))
            byte, low = constant(I16x16, 8), constant(I16x16, 255)
            with cgutils.for_range(builder, num_words) as loop:
                here = builder.add(key_at, builder.mul(loop.index, ir.Constant(I64, 64)))
                both = [load(builder, offset(builder, here, 32 * half), I16x16) for half in range(2)]
                key = [(builder.and_(pair, low), builder.lshr(pair, byte)) for pair in both]
                word_at = builder.add(query_at, builder.mul(loop.index, ir.Constant(I64, 4)))
                for t in range(targets):
                    word = load(builder, builder.add(word_at, builder.mul(width, ir.Constant(I64, t))), I32)
                    pair = builder.bitcast(splat(builder, word, I32x8), I16x16)
                    asked = (builder.ashr(builder.shl(pair, byte), byte), builder.ashr(pair, byte))
                    for half in range(2):
                        total = builder.load(totals[2 * t + half])
                        for part in range(2):
                            products = [key[half][part], asked[part]]
                            total = builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", I32x8, products))
                        builder.store(total, totals[2 * t + half])
            for t in range(targets):
                row_at = builder.add(score_at, builder.mul(stride, ir.Constant(I64, 4 * t)))
                for half in range(2):
                    store(builder, builder.load(totals[2 * t + half]), offset(builder, row_at, 32 * half))
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.uintp, types.uintp, types.intp, types.intp), generate

    return tile


_tile_avx2_4, _tile_avx2_1 = _tile_avx2(4), _tile_avx2(1)


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@no_type_check
def _score(tag, key_at, query, start, score, blocks, targets):
    """score[t, :16 blocks] of up to TARGETS targets from keys at an address; `tag` (simd.TAGS) chooses the path. 4 | blocks."""
    raise NotImplementedError


@no_type_check
def _score_avx512(tag, key_at, query, start, score, blocks, targets):
    words, block = query.shape[1] // 4, query.shape[1] * LANES
    query_at, start_at, score_at = query.ctypes.data, start.ctypes.data, score.ctypes.data
    stride = score.shape[1]
    if targets > 2:
        for b in range(0, blocks, 2):
            _tile_8(key_at + b * block, query_at, start_at, score_at + b * 64, words, stride)
    else:
        for t in range(targets):
            own, first, out = query_at + t * 4 * words, start_at + 4 * t, score_at + 4 * t * stride
            for b in range(blocks):
                _tile_1(key_at + b * block, own, first, out + b * 64, words, stride)


@no_type_check
def _score_avx2(tag, key_at, query, start, score, blocks, targets):
    words, block = query.shape[1] // 4, query.shape[1] * LANES
    query_at, start_at, score_at = query.ctypes.data, start.ctypes.data, score.ctypes.data
    stride = score.shape[1]
    step = 4 if targets > 2 else 1
    for t in range(0, targets, step):
        own, first, out = query_at + t * 4 * words, start_at + 4 * t, score_at + 4 * t * stride
        for b in range(blocks):
            if step == 4:
                _tile_avx2_4(key_at + b * block, own, first, out + b * 64, words, stride)
            else:
                _tile_avx2_1(key_at + b * block, own, first, out + b * 64, words, stride)


@no_type_check
def _score_portable(tag, key_at, query, start, score, blocks, targets):
    words = query.shape[1] // 4
    key = numba.carray(pointer(key_at), (blocks, words, LANES, 4), np.uint8)
    for t in range(targets):
        for b in range(blocks):
            total = np.full(LANES, start[t], np.int32)
            for word in range(words):
                for lane in range(LANES):
                    for i in range(4):
                        total[lane] += np.int32(key[b, word, lane, i]) * np.int32(query[t, 4 * word + i])
            score[t, b * LANES : (b + 1) * LANES] = total


@overload(_score)
def _choose_score(tag, key_at, query, start, score, blocks, targets):  # type: ignore[no-untyped-def]
    return (_score_portable, _score_avx2, _score_avx512)[len(tag)]


@numba.njit(nogil=True, cache=True)
@no_type_check
def quantise(query, code, start, step):
    """Targets in 8 bits: code = rint(query / step), step = max |query| / 127; start = -128 sum(code) undoes the keys' +128."""
    for t in range(query.shape[0]):
        largest = np.float32(0)
        for i in range(query.shape[1]):
            largest = max(largest, abs(query[t, i]))
        step[t] = largest / np.float32(127)
        scale = np.float32(127) / largest if largest > 0 else np.float32(0)
        total = np.int32(0)
        for i in range(query.shape[1]):
            code[t, i] = np.int8(np.rint(query[t, i] * scale))
            total += np.int32(code[t, i])
        start[t] = -128 * total


@numba.njit(nogil=True, cache=True)
@no_type_check
def top_k(tag, block_at, block_rows, query, centre, key_step, pattern, factor, score, group, candidate, index, relevance):
    """The k best of each target: index [T, k] increasing, -1 last, and relevance in the units of query and key.

    block_at, block_rows: where runs of packed keys stand in memory, in order, and how many behaviours each holds; memory must be
    readable up to a multiple of STRIDE. pattern: [L] rows of factor [T, P], which multiplies a behaviour's score, or empty.
    score: scratch [TARGETS, rows of the longest run, a multiple of STRIDE]; group: scratch of a row of it; candidate: scratch
    [2, T, room(rows, k)].
    """
    targets, dim, k = query.shape[0], query.shape[1], index.shape[1]
    padded = (targets + TARGETS - 1) // TARGETS * TARGETS
    code, start, step = np.zeros((padded, dim), np.int8), np.zeros(padded, np.int32), np.empty(targets, np.float32)
    found, threshold = np.zeros(targets, np.int64), np.full(targets, LEAST)
    position, value = candidate[0], candidate[1]
    quantise(query, code, start, step)
    first = 0
    for run in range(len(block_at)):
        count = block_rows[run]
        blocks = (count + STRIDE - 1) // STRIDE * 4
        for t0 in range(0, targets, TARGETS):
            together = min(TARGETS, targets - t0)
            _score(tag, block_at[run], code[t0:], start[t0:], score, blocks, together)
            for i in range(together):
                t, row = t0 + i, score[i]
                if len(pattern):
                    scale(row, pattern[first : first + count], factor[t])
                row[count : blocks * LANES] = LEAST
                if run == 0:
                    threshold[t] = first_threshold(row, count, k, group)
                found[t], threshold[t] = admit(row, count, first, threshold[t], position[t], value[t], found[t], k)
        first += count
    for t in range(targets):
        found[t] = cut_back(position[t], value[t], found[t], k)
        shift = np.float32(0)
        for i in range(dim):
            shift += query[t, i] * centre[i]
        unit = step[t] * key_step
        for i in range(k):
            index[t, i] = position[t, i] if i < found[t] else -1
            if i >= found[t]:
                relevance[t, i] = -np.inf
            elif len(pattern):
                relevance[t, i] = unordered(value[t, i]) * unit
            else:
                relevance[t, i] = np.float32(value[t, i]) * unit + shift


@numba.njit(nogil=True, cache=True)
@no_type_check
def scale(score, pattern, factor):
    """score[i] = float32(score[i]) * factor[pattern[i]], in place, as an integer of the same order."""
    for i in range(len(pattern)):
        score[i] = ordered(np.float32(score[i]) * factor[pattern[i]])


@numba.njit(nogil=True, cache=True)
@no_type_check
def pack(key, centre, step, packed, first):
    """Write rows of float keys as 8-bit codes from position `first` on; returns how many values were clipped."""
    clipped = 0
    inverse, most = np.float32(1) / step, np.float32(127)
    stored = np.empty(key.shape[1], np.uint8)
    words, target = stored.view(np.uint32), packed.view(np.uint32)
    for n in range(key.shape[0]):
        for i in range(key.shape[1]):
            level = np.rint((key[n, i] - centre[i]) * inverse)
            clipped += abs(level) > most
            stored[i] = np.uint8(np.int32(min(max(level, -most), most)) + 128)
        block, lane = (first + n) // LANES, (first + n) % LANES
        for word in range(len(words)):
            target[block, word, lane, 0] = words[word]
    return clipped


@numba.njit(nogil=True, cache=True)
@no_type_check
def extremes(key):
    """Least and largest value of each column; of at least one row."""
    low, high = key[0].copy(), key[0].copy()
    for n in range(1, key.shape[0]):
        for i in range(key.shape[1]):
            low[i], high[i] = min(low[i], key[n, i]), max(high[i], key[n, i])
    return low, high


@numba.njit(nogil=True, cache=True)
@no_type_check
def score_block(tag, key_at, rows, code, start, score):
    """Scores alone of up to TARGETS quantised targets, without selection: what a scan costs at least. STRIDE divides rows."""
    _score(tag, key_at, code, start, score, rows // LANES, len(code))
