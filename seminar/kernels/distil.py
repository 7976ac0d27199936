"""The distillation loss and its gradient, one target after another: nothing of size targets x K is kept."""

from typing import no_type_check

import numba
import numpy as np

from seminar.kernels import ASSOCIATIVE
from seminar.kernels.floats import WIDTH, exp, load_lanes, store_lanes


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.
@numba.njit(nogil=True, cache=True, fastmath=ASSOCIATIVE)
@no_type_check
def divergence(query, table, row, teacher, counted, loss, of_query):
    """loss[n] = KL(teacher[n] || softmax_k <query[n], table[row[n, k]]>), of_query[n] its gradient, for counted targets.

    Rows -1 are padding; a target without any has no loss. teacher [N, K] is 0 at padding and adds up to 1.
    """
    num_kept, dim = row.shape[1], table.shape[1]
    room = -(-num_kept // WIDTH) * WIDTH
    relevance, place = np.empty(room, np.float32), np.empty(num_kept, np.intp)
    at = relevance.ctypes.data
    for n in range(len(row)):
        length, top = 0, numba.float32(-np.inf)
        for k in range(num_kept if counted[n] else 0):
            if row[n, k] >= 0:
                total = numba.float32(0)
                for i in range(dim):
                    total += query[n, i] * table[row[n, k], i]
                relevance[length], place[length] = total, k
                top, length = max(top, total), length + 1
        if not length:
            continue
        fit, entropy, total = numba.float32(0), numba.float32(0), numba.float32(0)
        for j in range(length):
            share = teacher[n, place[j]]
            relevance[j] -= top
            fit += share * relevance[j]
            entropy += share * np.log(max(share, numba.float32(1e-12)))
        relevance[length:] = -np.inf
        for j in range(0, length, WIDTH):
            store_lanes(exp(load_lanes(at + 4 * j)), at + 4 * j)
        for j in range(length):
            total += relevance[j]
        loss[n] = entropy - fit + np.log(total)
        for j in range(length):
            change, r = relevance[j] / total - teacher[n, place[j]], row[n, place[j]]
            for i in range(dim):
                of_query[n, i] += change * table[r, i]
