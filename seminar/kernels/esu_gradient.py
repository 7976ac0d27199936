"""Gradients of the fused ESU for one target after another: what `seminar/kernels/esu.py` did, backwards, from what it kept.

With weight a = softmax(z), z = b1 x + c (b2 + b3 x) + bias[age], x = <u, key>, c the cosine, o = sum_k a_k key_k, and the
gradient g of o:  da = <g, key>,  dz = a (da - sum_k a da),  dx = dz (b1 + b3 c),  du = sum_k dx key,  dkey = dx u + a g.
"""

from typing import no_type_check

import numba
import numpy as np

from seminar.kernels import float_blocks, floats
from seminar.kernels.esu import locate, pool
from seminar.kernels.floats import SIDE, WIDTH


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.
@numba.njit(nogil=True, cache=True)
@no_type_check
def retrace(query, table, row, hours, similar, mix, attention, of_pooled, of_query, of_table, of_bias, of_mix):
    """One target after another; table is (address, bytes a row), of_table [P, d] contiguous, both with the same rows.

    query, of_pooled, of_query [N, H, d]; attention [N, K, H]; similar [N or 0, K]; mix, of_mix [3, H]; of_bias [E, H]. The
    gradients of table, bias and mix are added to.
    """
    (num_kept, heads), dim, buckets = attention.shape[1:], query.shape[2], len(of_bias)
    room, size = -(-num_kept // SIDE) * SIDE, 4 * dim
    key_at, place = np.empty((1, room), np.uintp), np.empty(room, np.intp)
    grad_at, bucket = np.empty(room, np.uintp), np.empty(room, np.intp)
    weight, product = np.empty(SIDE * room, np.float32), np.empty(SIDE * room, np.float32)
    change, cosine = np.empty(SIDE * room, np.float32), np.zeros(SIDE * room, np.float32)
    for n in range(len(row)):
        length = locate(row[n], table, size, place, key_at)
        if not length:
            continue
        for k in range(length):
            grad_at[k] = of_table.ctypes.data + row[n, place[k]] * size
            bucket[k] = min(floats.exponent(hours[n, place[k]] + np.float32(1)), buckets - 1)
            if len(similar):
                cosine[SIDE * k : SIDE * k + SIDE] = similar[n, place[k]]
        for first in range(0, heads, SIDE):
            asked = query.ctypes.data + (n * heads + first) * size
            given = of_pooled.ctypes.data + (n * heads + first) * size
            _harden(asked, given, key_at[0], size, attention[n], place, length, first, weight, product, change)
            _mix(product, change, cosine, length, first, mix, of_mix, bucket, of_bias)
            pool(change, key_at[0], length, of_query[n, first:])
            _spread(change, asked, weight, given, grad_at, length, size)


@numba.njit(nogil=True)
@no_type_check
def _harden(asked, given, key_at, size, attention, place, length, first, weight, product, change):
    """In blocks of 4 rows x 4 heads: weight a, product x and change dz."""
    total, heads = floats.fill_lanes(np.float32(0)), attention.shape[1]
    for k in range(0, length, SIDE):
        here, last, at = attention.ctypes.data + 4 * first, length - 1, 16 * k
        a = floats.rows_of(
            here + 4 * heads * place[k],
            here + 4 * heads * place[min(k + 1, last)],
            here + 4 * heads * place[min(k + 2, last)],
            here + 4 * heads * place[min(k + 3, last)],
        )
        a = floats.first_lanes(a, SIDE * (length - k), np.float32(0))
        da = float_blocks.dots_shared(given, key_at.ctypes.data + 8 * k, size)
        floats.store_lanes(float_blocks.dots_shared(asked, key_at.ctypes.data + 8 * k, size), product.ctypes.data + at)
        floats.store_lanes(a, weight.ctypes.data + at)
        floats.store_lanes(da, change.ctypes.data + at)
        total = floats.fma(a, da, total)
    total = floats.sum_over_rows(total)
    for k in range(0, length, SIDE):
        at = 16 * k
        a, da = floats.load_lanes(weight.ctypes.data + at), floats.load_lanes(change.ctypes.data + at)
        floats.store_lanes(floats.multiply(a, floats.subtract(da, total)), change.ctypes.data + at)


@numba.njit(nogil=True)
@no_type_check
def _mix(product, change, cosine, length, first, mix, of_mix, bucket, of_bias):
    """Turns change from dz into dx, and adds to the gradients of mix and bias."""
    heads = mix.shape[1]
    b1 = floats.repeat_row(mix.ctypes.data + 4 * first)
    b3 = floats.repeat_row(mix.ctypes.data + 4 * (2 * heads + first))
    zero = floats.fill_lanes(np.float32(0))
    of_1, of_2, of_3 = zero, zero, zero
    for k in range(length):
        for h in range(SIDE):
            of_bias[bucket[k], first + h] += change[SIDE * k + h]
    for k in range(0, length, SIDE):
        at = change.ctypes.data + 16 * k
        dz, x = floats.load_lanes(at), floats.load_lanes(product.ctypes.data + 16 * k)
        c = floats.load_lanes(cosine.ctypes.data + 16 * k)
        met = floats.multiply(dz, x)
        of_1, of_2, of_3 = floats.add(of_1, met), floats.fma(dz, c, of_2), floats.fma(met, c, of_3)
        floats.store_lanes(floats.multiply(dz, floats.fma(b3, c, b1)), at)
    sums = np.empty((3, WIDTH), np.float32)
    floats.store_lanes(floats.sum_over_rows(of_1), sums.ctypes.data)
    floats.store_lanes(floats.sum_over_rows(of_2), sums.ctypes.data + 64)
    floats.store_lanes(floats.sum_over_rows(of_3), sums.ctypes.data + 128)
    for part in range(3):
        for h in range(SIDE):
            of_mix[part, first + h] += sums[part, h]


@numba.njit(nogil=True)
@no_type_check
def _spread(change, asked, weight, given, grad_at, length, size):
    start = 0
    at = (change.ctypes.data, asked, weight.ctypes.data, given, grad_at.ctypes.data)
    while start + 128 <= size:
        float_blocks.spread_32(at[0], at[1], at[2], at[3], at[4], length, start, size)
        start += 128
    while start < size:
        float_blocks.spread_16(at[0], at[1], at[2], at[3], at[4], length, start, size)
        start += 64
