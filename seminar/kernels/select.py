"""Exact top-K of integer scores that arrive block by block, oldest behaviours first; of equal scores the newest are kept.

A target's candidates stand in a list with a threshold that K behaviours are known to reach. The first block gives a threshold by
the maxima of small groups: if K groups have a maximum of at least x, so have K behaviours. Later blocks only compare and append;
when the list outgrows its room it is cut back to the K best, whose least is the new threshold. Scores are never sorted.
"""

from typing import Any, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seminar.kernels.simd import I1, I16, I32, I64, I32x16, call, constant, load, offset, splat, store

LEAST = np.int32(-(2**31))
"""Below every score; what padding scores."""
STRIDE = 64
"""Scores are compared 64 at a time: a block's scores are padded to a multiple of it with LEAST."""
BLIND = 2
"""Entries written for 64 scores before anyone asks how many there are."""
GROUPS_PER_KEPT = 4
"""Groups of the first block a kept behaviour: more make the first threshold tighter and its search longer."""


@intrinsic
def _reaches(typing_context: Any, address: Any, threshold: Any) -> Any:
    """Bit i of a uint64 is set if the int32 at address[i] is at least the threshold, i < 64. Any processor."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        base, least = arguments
        bound, mask = splat(builder, least, I32x16), ir.Constant(I64, 0)
        for part in range(4):
            reached = builder.icmp_signed(">=", load(builder, offset(builder, base, 64 * part), I32x16), bound)
            bits = builder.zext(builder.bitcast(reached, I16), I64)
            mask = builder.or_(mask, builder.shl(bits, ir.Constant(I64, 16 * part)))
        return mask

    return types.uint64(types.uintp, types.int32), generate


@intrinsic
def _lane_maxima(typing_context: Any, source: Any, vectors: Any, target: Any) -> Any:
    """Of a run of vectors of 16 int32, the largest in each lane."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        base, count, result = arguments
        largest = cgutils.alloca_once_value(builder, constant(I32x16, int(LEAST)))
        with cgutils.for_range(builder, count) as loop:
            here = load(builder, builder.add(base, builder.mul(loop.index, ir.Constant(I64, 64))), I32x16)
            builder.store(call(builder, "llvm.smax.v16i32", I32x16, [builder.load(largest), here]), largest)
        store(builder, builder.load(largest), result)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp), generate


@intrinsic
def _count_bits(typing_context: Any, word: Any) -> Any:
    """Number of set bits."""
    return types.int64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@intrinsic
def lowest_bit(typing_context: Any, word: Any) -> Any:
    """Position of the lowest set bit; 64 of none."""
    return types.int64(types.uint64), lambda context, builder, signature, args: builder.cttz(args[0], ir.Constant(I1, 0))


@intrinsic
def _bits_of(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as int32."""
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(args[0], I32)


@intrinsic
def _float_of(typing_context: Any, bits: Any) -> Any:
    """The float32 of these bits."""
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(args[0], ir.FloatType())


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def ordered(value):
    """An int32 that orders as the float32 does; equal floats (0 and -0 too) are equal integers."""
    bits = _bits_of(value + np.float32(0))
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


@numba.njit(nogil=True, cache=True)
@no_type_check
def unordered(score):
    """The float32 behind `ordered`."""
    return _float_of(score ^ ((score >> 31) & np.int32(0x7FFFFFFF)))


@numba.njit(nogil=True, cache=True)
@no_type_check
def kth_largest(value, count, k):
    """The k-th largest of value[:count], by bisection over what K values reach. value has room up to a multiple of STRIDE."""
    padded = (count + STRIDE - 1) // STRIDE * STRIDE
    value[count:padded] = LEAST
    low, high = np.int64(value[0]), np.int64(value[0])
    for i in range(count):
        low, high = min(low, np.int64(value[i])), max(high, np.int64(value[i]))
    address = value.ctypes.data
    while low < high:
        middle = (low + high + 1) >> 1
        reached = 0
        for i in range(0, padded, STRIDE):
            reached += _count_bits(_reaches(address + 4 * i, np.int32(middle)))
        if reached >= k:
            low = middle
        else:
            high = middle - 1
    return np.int32(low)


@numba.njit(nogil=True, cache=True)
@no_type_check
def first_threshold(score, count, k, group):
    """A score that at least k of score[:count] reach, close to the k-th largest. score is padded; group: scratch of its size."""
    if count <= k:
        return LEAST
    vectors = (count + STRIDE - 1) // STRIDE * 4
    run = max(1, vectors * 16 // (GROUPS_PER_KEPT * k))
    groups = (vectors + run - 1) // run
    source, target = score.ctypes.data, group.ctypes.data
    for g in range(groups):
        _lane_maxima(source + 64 * g * run, min(run, vectors - g * run), target + 64 * g)
    return kth_largest(group, groups * 16, k)


@numba.njit(nogil=True, cache=True)
@no_type_check
def most_held(k):
    """Candidates that a list may hold between blocks."""
    return 2 * k


@numba.njit(nogil=True, cache=True)
@no_type_check
def admit(score, count, first, threshold, found_position, found_score, found, k):
    """Append the behaviours of a block that reach the threshold; returns how many are held and the threshold now.

    score: padded with LEAST. first: position of the block's first behaviour. The lists have room for `count` more than
    max(k, found) entries; once they hold k, the threshold only rises.
    """
    address = score.ctypes.data
    for start in range(0, count, STRIDE):
        mask = _reaches(address + 4 * start, threshold)
        if start + STRIDE > count:
            mask &= (np.uint64(1) << np.uint64(count - start)) - np.uint64(1)
        admitted = _count_bits(mask)
        # How many of 64 reach the threshold is chance, and a branch on chance costs more than entries written in vain.
        for entry in range(BLIND):
            i = start + (lowest_bit(mask) & (STRIDE - 1))
            mask &= mask - np.uint64(1)
            found_position[found + entry] = first + i
            found_score[found + entry] = score[i]
        entry = found + BLIND
        while mask != 0:
            i = start + lowest_bit(mask)
            mask &= mask - np.uint64(1)
            found_position[entry] = first + i
            found_score[entry] = score[i]
            entry += 1
        found += admitted
    if found > most_held(k):
        threshold = kth_largest(found_score, found, k)
        found = keep_best(found_position, found_score, found, k, threshold)
    return found, threshold


@numba.njit(nogil=True, cache=True)
@no_type_check
def keep_best(position, score, found, k, kth):
    """Cut a list back to its k best, in place and in order: all above the k-th largest, and the last of those equal to it."""
    above = equal = 0
    for i in range(found):
        above += score[i] > kth
        equal += score[i] == kth
    skip = equal - (k - above)
    kept = 0
    for i in range(found):
        # Written always, counted if kept: no branch on what cannot be predicted.
        here = score[i]
        older = (here == kth) & (skip > 0)
        position[kept], score[kept] = position[i], here
        kept += (here >= kth) != older
        skip -= older
    return kept


@numba.njit(nogil=True, cache=True)
@no_type_check
def cut_back(position, score, found, k):
    """A list of `found` entries cut back to its k best, if it has more; returns how many are left. Room as `kth_largest`."""
    return keep_best(position, score, found, k, kth_largest(score, found, k)) if found > k else found


@numba.njit(nogil=True, cache=True)
@no_type_check
def room(count, k):
    """Entries that candidate lists need for blocks of `count` behaviours."""
    return (most_held(k) + count + 2 * STRIDE) // STRIDE * STRIDE
