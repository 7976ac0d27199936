"""Exact top-K of rows of float32 relevance that lie in memory: the selection of `seminar/kernels/select.py`, a row at a time.

Sorting library selections need a pass to select and four more to keep the newest of equals; here a row of 1,000 is read three
times in the first-level cache.
"""

from typing import no_type_check

import numba
import numpy as np

from seminar.kernels.select import STRIDE, admit, cut_back, first_threshold, ordered, room

# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def newest_best(relevance, length, kept):
    """kept [N, k]: positions of the k largest of relevance [N, L], oldest first, the newest of equals; -1 (as given) at the end.

    Row n has length[n] valid columns, the first ones. NaN is larger than any number.
    """
    k, widest = kept.shape[1], -(-relevance.shape[1] // STRIDE) * STRIDE
    score, group = np.empty(widest, np.int32), np.empty(widest + STRIDE, np.int32)
    position, value = np.empty(room(widest, k), np.int32), np.empty(room(widest, k), np.int32)
    for n in range(len(relevance)):
        count = length[n]
        if count <= k:
            for i in range(count):
                kept[n, i] = i
            continue
        for i in range(count):
            score[i] = ordered(relevance[n, i])
        score[count : -(-count // STRIDE) * STRIDE] = -(2**31)
        threshold = first_threshold(score, count, k, group)
        found, threshold = admit(score, count, 0, threshold, position, value, 0, k)
        cut_back(position, value, found, k)
        for i in range(k):
            kept[n, i] = position[i]
