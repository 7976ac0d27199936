"""Tables of a target over a codebook, in unsigned bytes; and codes and weights laid out as the look-up kernels read them.

A target asks each channel j of its vector v_j = A_j u, so that a behaviour's relevance is a sum of table entries,

    relevance = sum_j weight_j sum_s <v_j,s, C_j,s,c_s>.

All tables of a target share one step. Of each the middle of its range is taken off, so that entries fill their 8 bits; what the
middles of a channel add up to is where its sums start, as an integer.
"""

from typing import Any, NamedTuple, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy import ndarray

from seminar.kernels.lookup import PATTERN_LIMIT
from seminar.kernels.simd import I8, I32, I64, I32x16, load, offset, splat, store

LARGEST_START = np.float32(1 << 20)
"""Bound of what a channel's sums start from: 255 times 4 of them, weighed, stay below 2**31."""
LANES = 16
F32 = ir.FloatType()
F32x16, I8x16 = ir.VectorType(F32, LANES), ir.VectorType(I8, LANES)


class Codec(NamedTuple):
    """What turns targets into tables. transform_Med: v_j = u @ transform_j. centroid_MSwC: unused ones repeat a used one.

    hop: sub-space s sees v_j[s hop : s hop + w]; w for product codes, 0 for additive ones, which sum vectors of full width.
    d and C are multiples of 16.
    """

    transform_Med: ndarray
    centroid_MSwC: ndarray
    hop: int


def _at(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, size_bytes: int) -> ir.Value:
    return builder.add(base, builder.mul(index, ir.Constant(I64, size_bytes)))


def _pick(builder: ir.IRBuilder, order: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """The smaller ("<") or larger (">") of two vectors; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(order, a, b), a, b)


def _make_combine(together: int) -> Any:
    """Columns are taken 16 * together at a time: with several sums at once none waits for its last addition."""

    @intrinsic
    def combine(typing_context: Any, weight: Any, row: Any, total: Any, rows: Any, vectors: Any) -> Any:
        """total[c] = sum_i weight[i] row[i, c] in float32, at addresses; `vectors` times 16 columns. Any processor.

        Returns the least and the largest total.
        """

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            weight_at, row_at, total_at, num_rows, num_vectors = arguments
            stride = builder.mul(num_vectors, ir.Constant(I64, 4 * LANES))
            bounds = [(order, cgutils.alloca_once(builder, F32x16)) for order in ("<", ">")]
            for (_, bound), start in zip(bounds, (float("inf"), float("-inf")), strict=True):
                builder.store(ir.Constant(F32x16, [start] * LANES), bound)
            totals = [cgutils.alloca_once(builder, F32x16) for _ in range(together)]
            runs = builder.udiv(num_vectors, ir.Constant(I64, together))
            with cgutils.for_range(builder, runs) as column:
                for each in totals:
                    builder.store(ir.Constant(F32x16, [0.0] * LANES), each)
                with cgutils.for_range(builder, num_rows) as inner:
                    value = splat(builder, load(builder, _at(builder, weight_at, inner.index, 4), F32), F32x16)
                    here = builder.add(_at(builder, row_at, column.index, 64 * together), builder.mul(inner.index, stride))
                    for i, each in enumerate(totals):
                        product = builder.fmul(value, load(builder, offset(builder, here, 64 * i), F32x16))
                        builder.store(builder.fadd(builder.load(each), product), each)
                for i, each in enumerate(totals):
                    found = builder.load(each)
                    store(builder, found, offset(builder, _at(builder, total_at, column.index, 64 * together), 64 * i))
                    for order, bound in bounds:
                        builder.store(_pick(builder, order, found, builder.load(bound)), bound)
            pair = [_reduce(builder, order, builder.load(bound)) for order, bound in bounds]
            return context.make_tuple(builder, signature.return_type, pair)

        return types.UniTuple(types.float32, 2)(types.uintp, types.uintp, types.uintp, types.intp, types.intp), generate

    return combine


_combine_1, _combine_4 = _make_combine(1), _make_combine(4)


def _reduce(builder: ir.IRBuilder, order: str, vector: ir.Value) -> ir.Value:
    for distance in (8, 4, 2, 1):
        other = ir.Constant(I32x16, [i ^ distance for i in range(LANES)])
        vector = _pick(builder, order, vector, builder.shuffle_vector(vector, vector, other))
    return builder.extract_element(vector, ir.Constant(I32, 0))


@intrinsic
def _quantise(typing_context: Any, value: Any, level: Any, vectors: Any, middle: Any, inverse: Any) -> Any:
    """level[c] = 128 + rint((value[c] - middle) inverse) as bytes 1 .. 255, at addresses; NaN counts as the least."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        value_at, level_at, num_vectors, *scalars = arguments
        centre, scale = (splat(builder, scalar, F32x16) for scalar in scalars)
        least, half, most = (ir.Constant(F32x16, [bound] * LANES) for bound in (1.0, 128.5, 255.0))
        with cgutils.for_range(builder, num_vectors) as column:
            deviation = builder.fsub(load(builder, _at(builder, value_at, column.index, 64), F32x16), centre)
            scaled = builder.fadd(builder.fmul(deviation, scale), half)
            clipped = _pick(builder, "<", _pick(builder, ">", scaled, least), most)
            whole = builder.trunc(builder.fptosi(clipped, I32x16), I8x16)
            store(builder, whole, _at(builder, level_at, column.index, 16))
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp, types.float32, types.float32), generate


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def _combine(weight_at, row_at, total_at, rows, vectors):
    if vectors % 4 == 0:
        return _combine_4(weight_at, row_at, total_at, rows, vectors)
    return _combine_1(weight_at, row_at, total_at, rows, vectors)


@numba.njit(nogil=True, cache=True)
@no_type_check
def fill(transform, centroid, hop, query, fold, table, start, step):
    """Tables, starts and steps of targets query [T, e], by a Codec; channels are scaled by fold [T, M], [1, M], or [0, M] for 1.

    table [T, V, C]: channel j has rows from j V / M on, rows beyond its S sub-spaces are zeroed. start [T, M], or [T, 1] where
    the channels are summed as one. Relevance is step times a sum.
    """
    channels, spaces, width, centroids = centroid.shape
    columns, room = centroids // LANES, table.shape[1] // channels
    scaled, asked = np.empty(query.shape[1], np.float32), np.empty(transform.shape[2], np.float32)
    entry, middle = np.empty((channels, spaces, centroids), np.float32), np.empty((channels, spaces), np.float32)
    begin = np.empty(start.shape[1], np.float64)
    asked_at, scaled_at, table_at = asked.ctypes.data, scaled.ctypes.data, table.ctypes.data
    transform_at, centroid_at = transform.ctypes.data, centroid.ctypes.data
    for t in range(query.shape[0]):
        reach = np.float32(0)
        begin[:] = 0
        for j in range(channels):
            scale = np.float32(1)
            if len(fold):
                scale = fold[t if len(fold) > 1 else 0, j]
            for e in range(len(scaled)):
                scaled[e] = query[t, e] * scale
            _combine(scaled_at, transform_at + 4 * j * len(scaled) * len(asked), asked_at, len(scaled), len(asked) // LANES)
            for s in range(spaces):
                v = j * spaces + s
                to, book = entry.ctypes.data + 4 * v * centroids, centroid_at + 4 * v * width * centroids
                low, high = _combine(asked_at + 4 * s * hop, book, to, width, columns)
                middle[j, s] = (low + high) / np.float32(2)
                reach = max(reach, high - low)
                begin[j if len(begin) > 1 else 0] += middle[j, s]
        step[t] = max(reach / np.float32(254), np.float32(np.abs(begin).max()) / LARGEST_START)
        inverse = np.float32(1) / step[t] if step[t] > 0 else np.float32(0)
        for j in range(len(begin)):
            start[t, j] = np.rint(begin[j] * inverse) - 128 * spaces * (channels // len(begin))
        for j in range(channels):
            for s in range(spaces):
                to = table_at + (t * table.shape[1] + j * room + s) * centroids
                _quantise(entry.ctypes.data + 4 * (j * spaces + s) * centroids, to, columns, middle[j, s], inverse)
            for s in range(spaces, room):
                table[t, j * room + s] = 0


@numba.njit(nogil=True, cache=True)
@no_type_check
def fill_gates(gate, seen, level, unit):
    """A target's weights in bytes by presence pattern: gate_j / sum of the present gates; weight = unit times level.

    gate [T, M] of any scale, seen [16]: patterns that occur. level [T, M, 16], unit [T].
    """
    weight = np.empty((gate.shape[1], PATTERN_LIMIT), np.float32)
    for t in range(gate.shape[0]):
        largest = np.float32(0)
        for p in range(PATTERN_LIMIT):
            total = np.float32(0)
            for j in range(gate.shape[1]):
                weight[j, p] = gate[t, j] if (p >> j) & 1 and seen[p] else np.float32(0)
                total += weight[j, p]
            for j in range(gate.shape[1]):
                weight[j, p] = weight[j, p] / total if total > 0 else np.float32(0)
                largest = max(largest, weight[j, p])
        unit[t] = largest / np.float32(255)
        for j in range(gate.shape[1]):
            for p in range(PATTERN_LIMIT):
                level[t, j, p] = np.uint8(weight[j, p] / unit[t] + np.float32(0.5)) if largest > 0 else 0
