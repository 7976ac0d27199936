"""GSU over codes that are decoded once a request: the bytes of codes in store, the speed of merged 8-bit keys in the scan.

A decoded channel is its centroids times R_j^T A_j, so a merged key is one row of weighted centroids times one matrix.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seminar.codes.codebook import CatalogueCodes, Codebooks
from seminar.kernels.packing import readonly
from seminar.retrieval.base import Keys
from seminar.retrieval.int8 import Int8Index, PackedKeys
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.pq import check_codes, rotated_transform

BLOCK = 256
"""Behaviours decoded between two matrix products: their centroids are 256 KiB at 4 channels of 64."""


class DecodedRetriever:
    """Decodes and merges the channels of every behaviour. Raises what `PQRetriever` raises; no gate of the target."""

    name = "decoded"

    def __init__(self, space: KeySpace, codebooks: Codebooks, codes: CatalogueCodes) -> None:
        check_codes(codebooks, codes)
        self.space = space
        self.bytes_per_behaviour = codebooks.bytes_per_behaviour
        self._centroid = readonly(codebooks.centroid_MSCw)
        self._query_code, self._item_code = readonly(codes.query_code_QS), readonly(codes.item_code_I3S)
        self._transform_De = torch.from_numpy(rotated_transform(space, codebooks)).flatten(0, 1)

    def index(self, keys: Keys) -> Int8Index:
        """Decode, merge and pack one history."""
        return Int8Index(PackedKeys.of(self.merged(keys).numpy()))

    @torch.no_grad()
    def merged(self, keys: Keys) -> Float[Tensor, "L d"]:
        """Keys as their codes decode; zero for a behaviour without any channel."""
        key_Ld = torch.empty(len(keys), self.space.dim)
        gated_ND = np.empty((BLOCK, len(self._transform_De)), np.float32)
        item_L, query_L = (np.ascontiguousarray(row_L.numpy(), np.int64) for row_L in (keys.item_L, keys.query_L))
        weight_LM = np.ascontiguousarray(keys.weight_LM.numpy(), np.float32)
        for first in range(0, len(keys), BLOCK):
            rows = slice(first, first + BLOCK)
            count = len(item_L[rows])
            _decode(self._centroid, self._query_code, self._item_code, query_L[rows], item_L[rows], weight_LM[rows], gated_ND)
            torch.mm(torch.from_numpy(gated_ND[:count]), self._transform_De, out=key_Ld[rows])
        return key_Ld


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def _decode(centroid, query_code, item_code, query, item, weight, gated):
    """gated [N, M d]: centroids of every channel, times its weight."""
    channels, spaces, _, width = centroid.shape
    for n in range(len(item)):
        for j in range(channels):
            w = weight[n, j]
            row = gated[n, j * spaces * width : (j + 1) * spaces * width]
            if w == 0:
                row[:] = 0
                continue
            code = query_code[query[n]] if j == 0 else item_code[item[n], j - 1]
            for s in range(spaces):
                for i in range(width):
                    row[s * width + i] = w * centroid[j, s, code[s], i]
