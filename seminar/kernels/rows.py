"""Rows of tables: unit vectors and sums of bags of rows, each with the loop of its gradient."""

from typing import no_type_check

import numba
import numpy as np

from seminar.kernels import ASSOCIATIVE

LEAST_NORM = 1e-12
"""Shorter vectors are divided by this."""


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True, fastmath=ASSOCIATIVE)
@no_type_check
def to_unit(vector, unit, inverse_norm):
    """unit[n] = vector[n] * inverse_norm[n], of length 1."""
    for n in range(len(vector)):
        total = numba.float32(0)
        for i in range(vector.shape[1]):
            total += vector[n, i] * vector[n, i]
        inverse_norm[n] = numba.float32(1) / max(np.sqrt(total), numba.float32(LEAST_NORM))
        for i in range(vector.shape[1]):
            unit[n, i] = vector[n, i] * inverse_norm[n]


@numba.njit(nogil=True, cache=True, fastmath=ASSOCIATIVE)
@no_type_check
def from_unit(grad, unit, inverse_norm, out):
    """out = (grad - unit <unit, grad>) / norm; a vector shorter than LEAST_NORM was only scaled."""
    for n in range(len(grad)):
        along = numba.float32(0)
        if inverse_norm[n] < numba.float32(1 / LEAST_NORM):
            for i in range(grad.shape[1]):
                along += grad[n, i] * unit[n, i]
        for i in range(grad.shape[1]):
            out[n, i] = (grad[n, i] - unit[n, i] * along) * inverse_norm[n]


@numba.njit(nogil=True, cache=True)
@no_type_check
def gather(table, row, out):
    """out[n] = table[row[n]], zeros for row -1."""
    for n in range(len(row)):
        r = row[n]
        if r >= 0:
            for i in range(table.shape[1]):
                out[n, i] = table[r, i]
        else:
            for i in range(table.shape[1]):
                out[n, i] = 0


@numba.njit(nogil=True, cache=True)
@no_type_check
def sum_bags(table, row, out):
    """out[n] += sum of the table's rows row[n, w] that are >= 0."""
    for n in range(row.shape[0]):
        for w in range(row.shape[1]):
            r = row[n, w]
            if r >= 0:
                for i in range(table.shape[1]):
                    out[n, i] += table[r, i]


@numba.njit(nogil=True, cache=True)
@no_type_check
def scatter_bags(grad, place, out):
    """out[place[n, w]] += grad[n] for places >= 0."""
    for n in range(place.shape[0]):
        for w in range(place.shape[1]):
            p = place[n, w]
            if p >= 0:
                for i in range(grad.shape[1]):
                    out[p, i] += grad[n, i]


@numba.njit(nogil=True, cache=True, error_model="numpy")
@no_type_check
def adagrad(table, total, row, gradient, rate, epsilon):
    """total[r] += g^2, table[r] -= rate g / (sqrt(total[r]) + epsilon) for distinct rows r and their gradients g."""
    for n in range(len(row)):
        r = row[n]
        for i in range(table.shape[1]):
            g = gradient[n, i]
            total[r, i] += g * g
            table[r, i] -= rate * g / (np.sqrt(total[r, i]) + epsilon)
