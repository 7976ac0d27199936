"""Optimised product quantisation: an orthogonal rotation that suits a channel's sub-spaces (Ge et al., CVPR 2013).

Alternating descent of sum |x R - y|^2 over codes y and rotation R: with the codes fixed, R = U V^T where U S V^T is the singular
value decomposition of sum x y^T (Procrustes). Nothing depends on how points are sharded or on a processor's BLAS: that sum is
of integers, rotations are chains of fused multiply-adds in a fixed order, and the decomposition is Jacobi's.
"""

from functools import partial
from typing import Any, Protocol, TypeVar, no_type_check, runtime_checkable

import numba
import numpy as np
from jaxtyping import Float, Float32, Int
from numpy import ndarray

from seminar.codes.kmeans import SCALE, Statistics, merge, split_spaces, statistics, update
from seminar.codes.nearest import assign, fused, readonly

COORDINATE = float(np.sqrt(SCALE))
"""Fixed-point units a coordinate in cross-moments; the product of two is at SCALE, so MAX_POINTS of them cannot overflow."""
_DAMPING = 1e-6
"""Pull towards the rotation before, in mean squared lengths of a coordinate: it decides directions that no point has."""
_SWEEPS = 60

Result = TypeVar("Result")


@runtime_checkable
class OverShards(Protocol):
    """Applies a function to every shard of some points, in the order of the points."""

    def __call__(self, function: Any) -> list[Any]: ...


def rotate(unit_Nd: Float[ndarray, "N d"], rotation_dd: Float32[ndarray, "d d"]) -> Float32[ndarray, "N d"]:
    """Each vector times the rotation, independent of the other vectors in the call; the identity changes no bit."""
    unit_Nd = np.ascontiguousarray(unit_Nd, np.float32)
    return unit_Nd if is_identity(rotation_dd) else _rotate(readonly(unit_Nd), readonly(rotation_dd))


def is_identity(rotation_dd: Float32[ndarray, "d d"]) -> bool:
    """Whether a channel is not rotated."""
    return np.array_equal(rotation_dd, np.eye(len(rotation_dd)))


def learn_rotation(
    over_shards: OverShards, distinct_Nd: Float32[ndarray, "N d"], chosen_C: Int[ndarray, " C"], num_spaces: int, rounds: int
) -> tuple[Float32[ndarray, "d d"], Float32[ndarray, "S C w"]]:
    """A rotation and the centroids it was learnt with, begun at these C of the distinct vectors.

    A round is one update of the centroids and one of the rotation, each after a pass over the points; neither can raise the error
    beyond rounding.
    """
    rotation = balanced_rotation(np.sum(over_shards(second_moment), axis=0), num_spaces)
    centroid = split_spaces(rotate(distinct_Nd[chosen_C], rotation), num_spaces).swapaxes(0, 1).copy()
    for _ in range(rounds):
        gathered = merge(over_shards(partial(rotated_statistics, rotation_dd=rotation, centroid_SCw=centroid)))
        centroid = update(centroid, gathered)
        moments = over_shards(partial(cross_moment, rotation_dd=rotation, centroid_SCw=centroid))
        rotation = procrustes(np.sum(moments, axis=0), rotation, int(gathered.count_SC[0].sum()))
    return rotation, centroid


def rotated_statistics(
    unit_Nd: Float[ndarray, "N d"], rotation_dd: Float32[ndarray, "d d"], centroid_SCw: Float32[ndarray, "S C w"]
) -> Statistics:
    """Statistics of one shard of vectors that are rotated first."""
    return statistics(split_spaces(rotate(unit_Nd, rotation_dd), len(centroid_SCw)), centroid_SCw)


def second_moment(unit_Nd: Float[ndarray, "N d"]) -> Int[ndarray, "d d"]:
    """Fixed-point sum of x x^T over one shard, at SCALE."""
    return _cross(_fixed(unit_Nd), _fixed(unit_Nd))


def cross_moment(
    unit_Nd: Float[ndarray, "N d"], rotation_dd: Float32[ndarray, "d d"], centroid_SCw: Float32[ndarray, "S C w"]
) -> Int[ndarray, "d d"]:
    """Fixed-point sum of x y^T over one shard, at SCALE: vectors as they are, and what they are quantised to once rotated."""
    num_spaces = len(centroid_SCw)
    code_NS, _ = assign(split_spaces(rotate(unit_Nd, rotation_dd), num_spaces), centroid_SCw)
    return _cross(_fixed(unit_Nd), _fixed(centroid_SCw[np.arange(num_spaces), code_NS].reshape(unit_Nd.shape)))


def procrustes(cross_dd: Int[ndarray, "d d"], before_dd: Float32[ndarray, "d d"], points: int) -> Float32[ndarray, "d d"]:
    """The orthogonal R that maximises <R, sum x y^T>, from that sum at SCALE; close to `before` where the sum says nothing."""
    dim = len(cross_dd)
    target_dd = cross_dd / SCALE + (_DAMPING * points / dim) * before_dd.astype(np.float64)
    left_dd, right_dd, _ = _jacobi(np.ascontiguousarray(target_dd.T))
    return (_products(left_dd, right_dd)).astype(np.float32)


def balanced_rotation(moment_dd: Int[ndarray, "d d"], num_spaces: int) -> Float32[ndarray, "d d"]:
    """Principal directions, dealt out so that all sub-spaces have about the same product of second moments (section 3.2)."""
    dim = len(moment_dd)
    _, direction_dd, size_d = _jacobi(moment_dd / SCALE)
    logarithm_d = np.log(np.maximum(size_d, 1e-12 * size_d.max()))
    spaces: list[list[int]] = [[] for _ in range(num_spaces)]
    for direction in np.argsort(-size_d, kind="stable"):
        open_spaces = [space for space in spaces if len(space) < dim // num_spaces]
        min(open_spaces, key=lambda space: sum(logarithm_d[taken] for taken in space)).append(int(direction))
    return direction_dd[np.concatenate(spaces)].T.astype(np.float32)


def _fixed(vector_Nd: Float[ndarray, "N d"]) -> Int[ndarray, "N d"]:
    return np.rint(np.asarray(vector_Nd, np.float64) * COORDINATE).astype(np.int32)


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def _rotate(vectors, rotation):
    rotated = np.zeros(vectors.shape, np.float32)
    for n in range(vectors.shape[0]):
        row = rotated[n]
        for j in range(vectors.shape[1]):
            coordinate = vectors[n, j]
            for k in range(vectors.shape[1]):
                row[k] = fused(coordinate, rotation[j, k], row[k])
    return rotated


@numba.njit(nogil=True, cache=True)
@no_type_check
def _cross(left, right):
    total = np.zeros((left.shape[1], right.shape[1]), np.int64)
    for n in range(left.shape[0]):
        for i in range(left.shape[1]):
            coordinate = np.int64(left[n, i])
            for j in range(right.shape[1]):
                total[i, j] += coordinate * np.int64(right[n, j])
    return total


@numba.njit(nogil=True, cache=True)
@no_type_check
def _jacobi(columns):
    """One-sided Jacobi of the matrix whose columns are these rows: U^T, V^T and singular values, unordered, in float64."""
    work, right = columns.copy(), np.eye(len(columns))
    for _ in range(_SWEEPS):
        turned = False
        for p in range(len(work)):
            for q in range(p + 1, len(work)):
                a, b, c = 0.0, 0.0, 0.0
                for k in range(len(work)):
                    a += work[p, k] * work[p, k]
                    b += work[q, k] * work[q, k]
                    c += work[p, k] * work[q, k]
                if abs(c) <= 1e-15 * np.sqrt(a * b):
                    continue
                turned = True
                ratio = (b - a) / (2 * c)
                tangent = (1.0 if ratio >= 0 else -1.0) / (abs(ratio) + np.sqrt(1 + ratio * ratio))
                cosine = 1 / np.sqrt(1 + tangent * tangent)
                sine = cosine * tangent
                for k in range(len(work)):
                    x, y = work[p, k], work[q, k]
                    work[p, k], work[q, k] = cosine * x - sine * y, sine * x + cosine * y
                    x, y = right[p, k], right[q, k]
                    right[p, k], right[q, k] = cosine * x - sine * y, sine * x + cosine * y
        if not turned:
            break
    size = np.zeros(len(work))
    for p in range(len(work)):
        for k in range(len(work)):
            size[p] += work[p, k] * work[p, k]
        size[p] = np.sqrt(size[p])
        if size[p] > 0:
            for k in range(len(work)):
                work[p, k] /= size[p]
    return work, right, size


@numba.njit(nogil=True, cache=True)
@no_type_check
def _products(left, right):
    """sum_p left[p] right[p]^T."""
    total = np.zeros(left.shape)
    for p in range(len(left)):
        for i in range(len(left)):
            for j in range(len(left)):
                total[i, j] += left[p, i] * right[p, j]
    return total
