"""Exact top-K of many histories on a GPU in two passes over the keys that write no score matrix.

Group g of a history is its rows g, g + S, g + 2S, ...: a program keeps the running maxima of its groups in registers, and
neighbours in time, which resemble each other, stand in different groups. The K-th largest group maximum is at most the K-th
largest score, and about -S ln(1 - K/S) rows reach it (105 for K = 100, S = 1,024), whatever the length.

    maxima     tile product, running maximum           reads the keys, writes S maxima a target (float16)
    threshold  K-th largest maximum, by bisection      reads the maxima
    mark       the same product, one bit a score       reads the keys, writes a bit where the threshold is reached
    choose     marked rows scored once more, K best    reads the bits and the ~105 marked keys of each target

Arithmetic, not a measurement, for 64 users x 100 targets x 10,000 x 64 in 16 bits. A matmul alone does 8.2 GFLOP (10 us at 800
TFLOP/s), reads 82 MB of keys and writes 128 MB of scores: 210 MB, 70 us at 3 TB/s. A top-K reads the 128 MB again, and more than
once. Here the products are 21 GFLOP (twice, targets padded to 128), and the bytes 82 MB of keys twice, 26 MB of maxima, 16 MB of
bits, 8 MB of results and the marked keys, 86 MB in pieces of 128 bytes: 300 MB asked for. Each pass walks the users against the
one before it and so finds in L2 (50 MB on an H100) what that one read last; if that is half of the keys, and all else is there,
170 MB come from memory. An epilogue is about 5 instructions a score, 14 us of issue slots a pass, which hide behind memory.
With few targets the second pass reads only rows of groups that reach a threshold, about min(1, T K / S) of them; with many there
is nothing to leave out.

No atomics: the result is deterministic. A row with more marks than its buffer holds, or fewer than K (a NaN among its scores), is
reported incomplete, and the caller takes the plain form. Where the K-th score is outside float16 (above 65,504, below 1e-7) the
result is exact too, but more rows are marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seminar.retrieval import gpu_kernels as kernels

MAX_K, MAX_DIM, MAX_LENGTH = 512, 256, 1 << 22
MAX_STRIDE, MAX_CAPACITY = 4096, 4096
PROGRAMS = 512
"""Programs of a pass that fill a large GPU; smaller batches cut histories into more groups to reach it."""


@dataclass(frozen=True)
class Tiling:
    """targets, rows: of one tile. stride: S, the number of groups. narrow: marks that are nearly always enough; capacity: marks a
    target has room for. skip: the second pass looks at the group maxima first."""

    targets: int
    rows: int
    stride: int
    narrow: int
    capacity: int
    skip: bool

    @classmethod
    def of(cls, users: int, targets: int, longest: int, k: int) -> Tiling:
        """Tiles for one shape; S of at least 8 K where histories are that long, so that the threshold lies close to the K-th."""
        block = min(128, max(16, power_of_two(targets)))
        rows = 64 if block == 128 else 128
        stride = power_of_two(8 * k)
        while users * -(-targets // block) * stride // rows < PROGRAMS:
            stride *= 2
        stride = max(rows, min(stride, power_of_two(longest), MAX_STRIDE))
        narrow = max(32, power_of_two(k + k // 5))
        return cls(block, rows, stride, narrow, min(8 * narrow, MAX_CAPACITY), skip=min(targets, block) * k <= 2 * stride)

    def scratch_bytes(self, longest: int) -> int:
        """Memory for each target of each user, beside its result."""
        return 2 * self.stride + longest // 8 + 8 * self.capacity


def supports(longest: int, dim: int, k: int) -> bool:
    """Whether Triton is installed and the kernels fit the shape."""
    fits = dim % 16 == 0 and 0 < dim <= MAX_DIM and 0 < k <= MAX_K and 0 < longest <= MAX_LENGTH
    return kernels.triton is not None and fits


def two_pass(
    query_UTd: Float[Tensor, "U T d"], key_ULd: Float[Tensor, "U L d"], length_U: Int[Tensor, " U"], k: int
) -> tuple[Int[Tensor, "U T K"], Float[Tensor, "U T K"], Bool[Tensor, "U T"]]:
    """Positions (increasing, -1 last), relevance (float32, -inf at -1) and which rows are complete; never waits for the GPU.

    Contiguous tensors of one 16-bit type, of a shape that `supports` accepts. An incomplete row holds nothing of use.
    """
    (users, targets, dim), longest = query_UTd.shape, key_ULd.shape[1]
    tiling = Tiling.of(users, targets, longest, k)
    rows, num_words, capacity = users * targets, -(-longest // tiling.rows) * tiling.rows // 32, tiling.capacity
    empty = query_UTd.new_empty
    maxima, threshold = empty((rows, tiling.stride), dtype=torch.int16), empty(rows, dtype=torch.float32)
    mark, count = empty((rows, num_words), dtype=torch.int32), empty(rows, dtype=torch.int32)
    position, score = empty((rows, capacity), dtype=torch.int32), empty((rows, capacity), dtype=torch.float32)
    index_UTK, relevance_UTK = empty((users, targets, k), dtype=torch.int64), empty((users, targets, k), dtype=torch.float32)
    complete_UT = empty((users, targets), dtype=torch.bool)

    asked, width = (query_UTd, key_ULd, length_U), {"dim": dim, "padded": power_of_two(dim)}
    tile = width | {
        "tile_targets": tiling.targets,
        "tile_rows": tiling.rows,
        "num_warps": 4,
        "num_stages": 3 if dim <= 128 else 2,
    }
    grid = (users * -(-targets // tiling.targets) * (tiling.stride // tiling.rows),)
    with torch.cuda.device_of(key_ULd):
        # 168 registers, not 206: a third block fits on a multiprocessor (at wider keys shared memory decides).
        bounded = {"maxnreg": 168} if dim <= 128 else {}
        kernels._maxima[grid](*asked, maxima, targets, longest, tiling.stride, **tile, **bounded)
        kernels._threshold[(rows,)](maxima, threshold, k, tiling.stride, num_warps=-(-tiling.stride // 1024))
        shape = targets, longest, tiling.stride, num_words
        kernels._mark[grid](*asked, maxima, threshold, mark, *shape, **tile, skip=tiling.skip)
        found = mark, position, score, count, index_UTK, relevance_UTK, complete_UT.view(torch.uint8)
        # Nearly all rows are done by the first launch, with one warp each; those with many repeats need more room and warps.
        for above, most in (-1, tiling.narrow), (tiling.narrow, capacity):
            sizes = {"capacity": capacity, "above": above, "width": most, "num_warps": max(most // 256, 1)}
            shape = targets, longest, num_words, k
            kernels._choose[(rows,)](*asked, *found, *shape, **width, **sizes, block=128, tile=32)
    return index_UTK, relevance_UTK, complete_UT


def power_of_two(number: int) -> int:
    """The least one that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()
