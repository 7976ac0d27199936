"""Triton kernels of exact top-K over keys of 16 bits; `gpu_two_pass.py` says how they fit together and launches them.

Checked by Triton's interpreter (TRITON_INTERPRET=1, float16 only: its product reads bfloat16 as integers), and by compiling for
an H100, which needs no GPU. Nothing is appended by atomics: on a 128 x 64 tile of scores that compiles to 27 instructions a score
(Triton 3.6) or not at all (3.9); bits summed to words are 5.
"""

from __future__ import annotations

from typing import Any, no_type_check

try:
    import triton  # type: ignore[missing-import]
    from triton import language as tl  # type: ignore[missing-import]

    jit: Any = triton.jit
except ModuleNotFoundError:  # the extra `gpu` is not installed; `gpu_two_pass.supports` says no
    triton = tl = None

    def jit(kernel: Any) -> Any:
        return kernel


# no_type_check: the import hook that checks shapes in tests would wrap what Triton must compile. A kernel may not read this
# module's globals: 1e999 is infinity, 0x7FFFFFFF the largest int32.


@jit
@no_type_check
def _ordered(score):
    """int32 in the order of float32."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@jit
@no_type_check
def _rounded(score):
    """The score rounded to float16, as int32 in the order of the scores."""
    bits = score.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFF, bits)


@jit
@no_type_check
def _kth_largest(value, k, low, high):
    """The k-th largest of `value`, which is in [low, high]; `high` or more where k is 0."""
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # of the sum that could overflow, half, rounded up
        count = tl.sum((value >= middle).to(tl.int32), axis=0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count > k, high, tl.where(count == k, middle, middle - 1))
    return tl.min(tl.where(value >= low, value, 0x7FFFFFFF), axis=0)


@jit
@no_type_check
def _place(program, targets, stride, tile_targets: tl.constexpr, tile_rows: tl.constexpr):
    """User, targets and first row of a program. Target tiles of the same rows are neighbours: they find the keys in L2."""
    tiles = tl.cdiv(targets, tile_targets)
    blocks = stride // tile_rows
    target_T = program % tiles * tile_targets + tl.arange(0, tile_targets)
    return (program // (tiles * blocks)).to(tl.int64), target_T, program // tiles % blocks * tile_rows


@jit
@no_type_check
def _load_queries(query, user, target_T, targets, dim: tl.constexpr, padded: tl.constexpr):
    d = tl.arange(0, padded)
    address = query + (user * targets + target_T[:, None]) * dim + d[None, :]
    return tl.load(address, mask=(target_T < targets)[:, None] & (d < dim)[None, :], other=0.0)


@jit
@no_type_check
def _scores(query_Td, key, row_L, wanted_L, dim: tl.constexpr, padded: tl.constexpr):
    """The one product of both passes. Rows that are not wanted are not read."""
    d = tl.arange(0, padded)
    wanted_Ld = wanted_L[:, None] if dim == padded else wanted_L[:, None] & (d < dim)[None, :]
    key_Ld = tl.load(key + row_L[:, None] * dim + d[None, :], mask=wanted_Ld, other=0.0)
    return tl.dot(query_Td, tl.trans(key_Ld))


@jit
@no_type_check
def _maxima(
    query, key, length, maxima, targets, longest, stride,
    dim: tl.constexpr, padded: tl.constexpr, tile_targets: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    user, target_T, first = _place(tl.program_id(0), targets, stride, tile_targets, tile_rows)
    query_Td = _load_queries(query, user, target_T, targets, dim, padded)
    end = tl.minimum(tl.load(length + user).to(tl.int32), longest)
    key += user * longest * dim
    best_TL = tl.full((tile_targets, tile_rows), -1e999, tl.float32)
    for row in tl.range(first, end, stride):
        row_L = row + tl.arange(0, tile_rows)
        score_TL = _scores(query_Td, key, row_L, row_L < end, dim, padded)
        best_TL = tl.maximum(best_TL, tl.where((row_L < end)[None, :], score_TL, -1e999))
    column_L = first + tl.arange(0, tile_rows)
    address = maxima + (user * targets + target_T[:, None]) * stride + column_L[None, :]
    tl.store(address, _rounded(best_TL).to(tl.int16), mask=(target_T < targets)[:, None])


@jit
@no_type_check
def _threshold(maxima, threshold, k, stride: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(maxima + row * stride + tl.arange(0, stride)).to(tl.int32)
    kth = _kth_largest(value, k, tl.min(value, axis=0), tl.max(value, axis=0))
    # One step of float16 lower: below the K-th maximum however it was rounded, and below any rounding of `_choose`'s sums.
    below = kth - 1
    bits = tl.where(below < 0, below ^ 0x7FFF, below).to(tl.int16)
    # Below -infinity, the maximum of an empty group, would be NaN.
    lowest = tl.where(kth == -31745, -1e999, bits.to(tl.float16, bitcast=True).to(tl.float32))
    tl.store(threshold + row, lowest)


@jit
@no_type_check
def _mark(
    query, key, length, maxima, threshold, mark, targets, longest, stride, num_words,
    dim: tl.constexpr, padded: tl.constexpr, tile_targets: tl.constexpr, tile_rows: tl.constexpr, skip: tl.constexpr,
):  # fmt: skip
    # Backwards: the keys that the first pass read last are still in L2.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    user, target_T, first = _place(program, targets, stride, tile_targets, tile_rows)
    query_Td = _load_queries(query, user, target_T, targets, dim, padded)
    end = tl.minimum(tl.load(length + user).to(tl.int32), longest)
    key += user * longest * dim
    real_T = target_T < targets
    out_T = user * targets + target_T
    least_T = tl.load(threshold + out_T, mask=real_T, other=1e999)
    column_L = tl.arange(0, tile_rows)
    reached_L = tl.full((tile_rows,), 1, tl.int1)
    if skip:
        address = maxima + out_T[:, None] * stride + (first + column_L)[None, :]
        best_TL = tl.load(address, mask=real_T[:, None], other=-32768).to(tl.int32)
        reached_L = tl.max((best_TL >= _rounded(least_T)[:, None]).to(tl.int32), axis=0) > 0
    words: tl.constexpr = tile_rows // 32
    bit_L = 1 << (column_L % 32)
    address = mark + out_T[:, None] * num_words + tl.arange(0, words)[None, :]
    for row in tl.range(first, end, stride):
        row_L = row + column_L
        wanted_L = (row_L < end) & reached_L
        score_TL = _scores(query_Td, key, row_L, wanted_L, dim, padded)
        hit_TL = tl.where(score_TL >= least_T[:, None], bit_L[None, :], 0)
        # Distinct bits: their sum is their union. Rows that were not read are taken out of the words, which are fewer.
        word_TW = tl.sum(tl.reshape(hit_TL, (tile_targets, words, 32)), axis=2)
        wanted_W = tl.sum(tl.reshape(tl.where(wanted_L, bit_L, 0), (words, 32)), axis=1)
        tl.store(address + row // 32, word_TW & wanted_W[None, :], mask=real_T[:, None])


@jit
@no_type_check
def _count_bits(word):
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return (((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@jit
@no_type_check
def _unpack(mark, num_words, position, capacity: tl.constexpr, block: tl.constexpr):
    """Positions of set bits, increasing, as far as there is room; how many there are."""
    found = tl.zeros((), tl.int32)
    for start in tl.range(0, num_words, block):
        place = start + tl.arange(0, block)
        word = tl.load(mark + place, mask=place < num_words, other=0).to(tl.uint32, bitcast=True)
        count = _count_bits(word).to(tl.int32)
        slot = found + tl.cumsum(count, axis=0) - count
        found += tl.sum(count, axis=0)
        left = tl.max(count, axis=0)
        while left > 0:
            # The exponent of a power of two is the number of its bit; of 0 it is masked.
            rest = word & (word - 1)
            lowest = (word ^ rest).to(tl.float32)
            bit = (lowest.to(tl.int32, bitcast=True) >> 23) - 127
            tl.store(position + slot, place * 32 + bit, mask=(word != 0) & (slot < capacity))
            word = rest
            slot += 1
            left -= 1
    return found


@jit
@no_type_check
def _rescore(query, key, position, score, found, dim: tl.constexpr, padded: tl.constexpr, tile: tl.constexpr):
    """<query, key> of the positions, in float32, in the same order for every row: repeats of a key stay equal."""
    d = tl.arange(0, padded)
    query_d = tl.load(query + d, mask=d < dim, other=0.0).to(tl.float32)
    for start in tl.range(0, found, tile):
        slot = start + tl.arange(0, tile)
        row_R = tl.load(position + slot, mask=slot < found, other=0)
        key_Rd = tl.load(key + row_R[:, None] * dim + d[None, :], mask=(slot < found)[:, None] & (d < dim)[None, :], other=0.0)
        total_R = tl.sum(key_Rd.to(tl.float32) * query_d[None, :], axis=1)
        # -0 equals 0 but is ordered below it.
        tl.store(score + slot, tl.where(total_R == 0, 0.0, total_R), mask=slot < found)


@jit
@no_type_check
def _keep(position, score, found, k, index, relevance, width: tl.constexpr):
    """K best of `found` rows that stand by position, the newest of equals."""
    slot = tl.arange(0, width)
    real = slot < found
    score_R = tl.load(score + slot, mask=real, other=0.0)
    value = tl.where(real, _ordered(score_R), -0x80000000)
    need = tl.minimum(found, k)
    least = _kth_largest(value, need, tl.min(tl.where(real, value, 0x7FFFFFFF), axis=0), tl.max(value, axis=0))
    above = (value > least).to(tl.int32)
    equal = (value == least).to(tl.int32)
    newer = tl.sum(equal, axis=0) - tl.cumsum(equal, axis=0)
    chosen = above | tl.where(newer < need - tl.sum(above, axis=0), equal, 0)
    column = tl.cumsum(chosen, axis=0) - 1
    tl.store(index + column, tl.load(position + slot, mask=real, other=0).to(tl.int64), mask=chosen > 0)
    tl.store(relevance + column, score_R, mask=chosen > 0)
    short = (slot >= need) & (slot < k)
    tl.store(index + slot, tl.full((width,), -1, tl.int64), mask=short)
    tl.store(relevance + slot, tl.full((width,), -1e999, tl.float32), mask=short)


@jit
@no_type_check
def _choose(
    query, key, length, mark, position, score, count, index, relevance, complete, targets, longest, num_words, k,
    dim: tl.constexpr, padded: tl.constexpr, capacity: tl.constexpr, above: tl.constexpr, width: tl.constexpr,
    block: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Rows of more than `above` and at most `width` marks; the launch with `above` of -1 unpacks and counts those of all rows."""
    # Forwards: the keys that the second pass read last are still in L2.
    row = tl.program_id(0).to(tl.int64)
    user = row // targets
    end = tl.minimum(tl.load(length + user).to(tl.int32), longest)
    position += row * capacity
    score += row * capacity
    if above < 0:
        found = _unpack(mark + row * num_words, tl.cdiv(end, 32), position, capacity, block)
        tl.store(count + row, found)
        enough = (found >= tl.minimum(k, end)) & (found <= capacity)
        tl.store(complete + row, enough.to(tl.uint8))
        tl.debug_barrier()  # what some threads wrote, others read
    else:
        found = tl.load(count + row)
    if (found > above) & (found <= width):
        _rescore(query + row * dim, key + user * longest * dim, position, score, found, dim, padded, tile)
        tl.debug_barrier()
        _keep(position, score, found, k, index + row * k, relevance + row * k, width)
