"""What the fused ESU does for one target after another: `seminar/fused_esu.py` says what, and gives it its arrays.

Every array of numbers over the kept rows is a block of 4 rows x 4 heads after another, as `seminar/kernels/floats.py` has them.
"""

from typing import no_type_check

import numba
import numpy as np

from seminar.kernels import float_blocks, floats
from seminar.kernels.floats import SIDE, WIDTH

MODALITIES = 3
"""Content channels compared: text, image, attributes."""


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def attend(query, table, content, row, hours, share, target, presence, bias, mix, attention, pooled, count, similar):
    """One target after another; table and content are (address, bytes a row). similar [N, K] gets the cosines, [0, 0] none."""
    num_kept, (parts, heads, dim) = row.shape[1], query.shape[1:]
    room, size = -(-num_kept // SIDE) * SIDE, 4 * dim
    part_at, content_at, bias_at = np.empty((parts, room), np.uintp), np.empty(room, np.uintp), np.empty(room, np.uintp)
    place, word, nothing = np.empty(room, np.intp), np.empty(room, np.int32), np.zeros(dim, np.float32)
    cosine, weight = np.zeros(SIDE * room, np.float32), np.empty(SIDE * room, np.float32)
    scale, scaled = np.ones((parts, SIDE * room), np.float32), np.empty(SIDE * room, np.float32)
    for n in range(len(row)):
        length = locate(row[n], table, size, place, part_at)
        if not length:
            continue
        for k in range(-(-length // SIDE) * SIDE):
            # The last block repeats its last row: what it gives there is not used.
            at = place[min(k, length - 1)]
            bias_at[k] = bias.ctypes.data + 4 * heads * min(floats.exponent(hours[n, at] + np.float32(1)), len(bias) - 1)
            if len(presence):
                content_at[k] = content[0] + row[n, at] * content[1]
                word[k] = presence[row[n, at]] & presence[target[n]] if k < length else 0
        if len(presence):
            compare(content[0] + target[n] * content[1], content_at, size, word, length, cosine, count[n])
            if len(similar):
                for k in range(length):
                    similar[n, place[k]] = cosine[SIDE * k]
        if len(share):
            _spread(share[n], place, length, nothing, part_at, scale)
        for first in range(0, heads, SIDE):
            soften(query[n], first, part_at, scale, length, cosine, bias_at, mix, weight)
            for k in range(length):
                for h in range(SIDE):
                    attention[n, place[k], first + h] = weight[SIDE * k + h]
            for p in range(parts):
                if len(share):
                    for i in range(SIDE * length):
                        scaled[i] = weight[i] * scale[p, i]
                pool(scaled if len(share) else weight, part_at[p], length, pooled[n, p, first:])


@numba.njit(nogil=True)
@no_type_check
def locate(row, table, size, place, part_at):
    """Which kept behaviours are no padding, and where each part of their keys lies; how many there are."""
    length = 0
    for k in range(len(row)):
        if row[k] >= 0:
            place[length] = k
            for p in range(len(part_at)):
                part_at[p, length] = table[0] + row[k] * table[1] + p * size
            length += 1
    if length:
        for k in range(length, -(-length // SIDE) * SIDE):
            part_at[:, k] = part_at[:, length - 1]
    return length


@numba.njit(nogil=True)
@no_type_check
def _spread(share, place, length, nothing, part_at, scale):
    """scale[p, 4 k + any]: weight of part p. A part without weight is missing and may hold anything, also NaN: zeros are read."""
    for p in range(len(part_at)):
        for k in range(-(-length // SIDE) * SIDE):
            part = share[place[min(k, length - 1)], p]
            for h in range(SIDE):
                scale[p, SIDE * k + h] = part
            if part == 0:
                part_at[p, k] = nothing.ctypes.data


@numba.njit(nogil=True)
@no_type_check
def compare(asked, content_at, size, word, length, cosine, count):
    """cosine[4 k + any]: mean similarity over the modalities both have; count: SimTier histogram of each modality."""
    bins = len(count) // MODALITIES
    one, zero = floats.fill_lanes(np.float32(1)), floats.fill_lanes(np.float32(0))
    half, last = floats.fill_lanes(np.float32(bins / 2)), floats.fill_lanes(np.float32(bins - 1))
    # A histogram a row of the block: neighbours often meet the same bin, and would wait for each other.
    tier, seen = np.empty(WIDTH, np.int32), np.zeros((SIDE, len(count)), np.int32)
    for k in range(0, length, SIDE):
        shared = floats.flags(word[k], word[k + 1], word[k + 2], word[k + 3])
        similarity = floats.where(shared, float_blocks.dots_of_3(asked, content_at.ctypes.data + 8 * k, size), zero)
        mean = floats.divide(floats.sum_over_queries(similarity), floats.larger(floats.sum_over_queries(shared), one))
        floats.store_lanes(mean, cosine.ctypes.data + 16 * k)
        if bins:
            scaled = floats.multiply(floats.add(similarity, one), half)
            floats.store_truncated(floats.smaller(floats.larger(scaled, zero), last), tier.ctypes.data)
            for r in range(SIDE):
                for m in range(MODALITIES):
                    seen[r, np.uintp(m * bins + tier[SIDE * r + m])] += word[k + r] >> (8 * m) & 1
    for r in range(SIDE):
        for slot in range(len(count)):
            count[slot] += seen[r, slot]


@numba.njit(nogil=True)
@no_type_check
def soften(query, first, part_at, scale, length, cosine, bias_at, mix, weight):
    """weight[4 k + h]: softmax over the rows of b1 x + cosine (b2 + b3 x) + bias, x the logit of head first + h."""
    parts, heads, dim = query.shape
    top, skip, size = floats.fill_lanes(np.float32(-np.inf)), 4 * first, 4 * dim
    b1, b2 = floats.repeat_row(mix.ctypes.data + skip), floats.repeat_row(mix.ctypes.data + 4 * heads + skip)
    b3 = floats.repeat_row(mix.ctypes.data + 8 * heads + skip)
    for k in range(0, length, SIDE):
        x = floats.fill_lanes(np.float32(0))
        for p in range(parts):
            asked = query.ctypes.data + (p * heads + first) * size
            product = float_blocks.dots_shared(asked, part_at.ctypes.data + 8 * (p * part_at.shape[1] + k), size)
            x = floats.fma(product, floats.load_lanes(scale.ctypes.data + 4 * (p * scale.shape[1] + SIDE * k)), x)
        x = floats.fma(b1, x, floats.multiply(floats.load_lanes(cosine.ctypes.data + 16 * k), floats.fma(b3, x, b2)))
        x = floats.add(x, floats.rows_of(bias_at[k] + skip, bias_at[k + 1] + skip, bias_at[k + 2] + skip, bias_at[k + 3] + skip))
        x = floats.first_lanes(x, SIDE * (length - k), np.float32(-np.inf))
        floats.store_lanes(x, weight.ctypes.data + 16 * k)
        top = floats.larger(x, top)
    top, total = floats.max_over_rows(top), floats.fill_lanes(np.float32(0))
    for k in range(0, length, SIDE):
        x = floats.exp(floats.subtract(floats.load_lanes(weight.ctypes.data + 16 * k), top))
        floats.store_lanes(x, weight.ctypes.data + 16 * k)
        total = floats.add(total, x)
    share = floats.divide(floats.fill_lanes(np.float32(1)), floats.sum_over_rows(total))
    for k in range(0, length, SIDE):
        at = weight.ctypes.data + 16 * k
        floats.store_lanes(floats.multiply(floats.load_lanes(at), share), at)


@numba.njit(nogil=True)
@no_type_check
def pool(weight, row_at, length, out):
    """out[h] = sum over the rows of weight[4 k + h] * row."""
    size, start = 4 * out.shape[1], 0
    while start + 256 <= size:
        float_blocks.pool_64(weight.ctypes.data, row_at.ctypes.data, length, start, out.ctypes.data, size)
        start += 256
    while start < size:
        float_blocks.pool_16(weight.ctypes.data, row_at.ctypes.data, length, start, out.ctypes.data, size)
        start += 64
