"""Nearest centroids of sub-vectors: .5 us a vector of 16 sub-spaces with 256 centroids of width 4, on one core.

The squared distance is a chain of float32 fused multiply-adds over the coordinates in order, one chain a point and centroid, ties
going to the lowest centroid. No BLAS, whose rounding follows the shape of the block; no contraction left to a compiler. So a
code depends on nothing but its point and its codebook, on any kind of processor. The expansion |x|^2 - 2xc + |c|^2 saves a sixth
of the time and confuses near-equal centroids, which would make lossless channels lossy: it is not used.
"""

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, UInt8
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy import ndarray

_TILE = 256
"""Points scored side by side: their sub-vectors and best distances stay in the L1 cache."""
_GROUP = 4
"""Centroids between two looks at the best distance; which of them it was is found once, at the end."""


def assign(
    point_NSw: Float32[ndarray, "N S w"], centroid_SCw: Float32[ndarray, "S C w"]
) -> tuple[UInt8[ndarray, "N S"], Float32[ndarray, "N S"]]:
    """Nearest of C <= 256 centroids in each sub-space and its squared distance; independent of the other points in the call."""
    # Padding is infinitely far from everything.
    padding = ((0, 0), (0, -centroid_SCw.shape[1] % _GROUP), (0, 0))
    padded = np.pad(centroid_SCw, padding, constant_values=np.inf)
    return _nearest(readonly(point_NSw), readonly(padded), (0,) * centroid_SCw.shape[2])


def readonly(array: ndarray) -> ndarray:
    """A contiguous read-only view: writable and read-only arrays (Ray's) are two types to numba; with one it compiles once."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@intrinsic
@no_type_check
def fused(_context, _a, _b, _c):
    """a * b + c in float32 with one rounding. Without the instruction (x86 before 2013) it is computed, equal but slowly."""

    def generate(_, builder, __, arguments):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f32"), arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@numba.njit(nogil=True, cache=True)
@no_type_check
def _nearest(points, centroids, coordinates):
    """Codes [N, S] and squared distances [N, S]; SIMD lanes are points, which never meet in a sum.

    coordinates: a tuple as long as a sub-vector is wide. Its length belongs to its type: loops over coordinates are unrolled.
    """
    width = len(coordinates)
    num_points, num_spaces, _ = points.shape
    codes = np.empty((num_points, num_spaces), np.uint8)
    distances = np.empty((num_points, num_spaces), np.float32)
    tile = np.zeros((width, _TILE), np.float32)
    best = np.empty(_TILE, np.float32)
    group = np.empty(_TILE, np.int32)
    for start in range(0, num_points, _TILE):
        filled = min(_TILE, num_points - start)
        for space in range(num_spaces):
            for i in range(filled):
                for k in range(width):
                    tile[k, i] = points[start + i, space, k]
            best[:] = np.inf
            group[:] = 0
            for first in range(0, centroids.shape[1], _GROUP):
                for i in range(_TILE):
                    least = np.float32(np.inf)
                    for c in range(_GROUP):
                        distance = np.float32(0)
                        for k in range(width):
                            difference = tile[k, i] - centroids[space, first + c, k]
                            distance = fused(difference, difference, distance)
                        least = distance if distance < least else least
                    nearer = least < best[i]
                    best[i] = least if nearer else best[i]
                    group[i] = first if nearer else group[i]
            for i in range(filled):
                chosen = 0
                for c in range(_GROUP - 1, -1, -1):
                    distance = np.float32(0)
                    for k in range(width):
                        difference = tile[k, i] - centroids[space, group[i] + c, k]
                        distance = fused(difference, difference, distance)
                    chosen = c if distance == best[i] else chosen
                codes[start + i, space] = group[i] + chosen
                distances[start + i, space] = best[i]
    return codes, distances
