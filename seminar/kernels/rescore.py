"""Exact relevance of a few candidates a target, read from float keys in place, and the best of them."""

from typing import no_type_check

import numba
import numpy as np

from seminar.kernels.select import STRIDE, cut_back, ordered, unordered

# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
@no_type_check
def candidate_relevance(query, key, row, relevance):
    """relevance[t, r] = <query[t], key[row[t, r]]>, -inf where row is -1."""
    for t in range(row.shape[0]):
        for r in range(row.shape[1]):
            here = row[t, r]
            total = np.float32(0)
            if here >= 0:
                for i in range(query.shape[1]):
                    total += query[t, i] * key[here, i]
            relevance[t, r] = total if here >= 0 else np.float32(-np.inf)


@numba.njit(nogil=True, cache=True)
@no_type_check
def best_of(position, relevance, index, kept):
    """The k largest of each row of relevance [T, R] into index, kept [T, k]: positions as they stand (increasing, -1 anywhere but
    never kept), of equals the last, -1 and -inf where there are fewer."""
    k = index.shape[1]
    place = np.empty(position.shape[1], np.int64)
    score = np.empty(position.shape[1] + STRIDE, np.int32)
    for t in range(position.shape[0]):
        found = 0
        for r in range(position.shape[1]):
            if position[t, r] >= 0:
                place[found] = position[t, r]
                score[found] = ordered(relevance[t, r])
                found += 1
        found = cut_back(place, score, found, k) if k else 0
        for i in range(k):
            index[t, i] = place[i] if i < found else -1
            kept[t, i] = unordered(score[i]) if i < found else np.float32(-np.inf)


@numba.njit(nogil=True, cache=True)
@no_type_check
def distinct(position, length):
    """The distinct positions >= 0, increasing, and where each entry of `position` stands among them (-1 stays -1)."""
    place = np.full(length, -1, np.int64)
    for t in range(position.shape[0]):
        for r in range(position.shape[1]):
            if position[t, r] >= 0:
                place[position[t, r]] = 0
    count = 0
    for n in range(length):
        if place[n] >= 0:
            place[n] = count
            count += 1
    rows = np.empty(count, np.int64)
    for n in range(length):
        if place[n] >= 0:
            rows[place[n]] = n
    row = np.empty(position.shape, np.int64)
    for t in range(position.shape[0]):
        for r in range(position.shape[1]):
            row[t, r] = place[position[t, r]] if position[t, r] >= 0 else -1
    return rows, row
