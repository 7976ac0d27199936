"""The catalogue as the GSU sees it: every row's unit vectors, and the keys they become through channel scales and G_j.

With a gate of the request or of the behaviour a key is one d-vector, key_l = sum_j weight_lj unit_lj A_j: merge first, quantise
after. Where the gate is the target's, the M parts stay apart and the target brings its weights.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from seminar.retrieval.base import Keys, Probe
from seminar.schema import QUERY


class KeySpace:
    """item_unit: [I, 3, d] text, image, attributes. query_unit: [Q, d]. transform: A_j = scale_j G_j. Missing rows stay unread.

    Holds the transformed catalogue beside the unit vectors: 1 KiB an item at d = 64.
    """

    def __init__(
        self, item_unit: Float[Tensor, "I 3 d"], query_unit: Float[Tensor, "Q d"], transform: Float[Tensor, "M d d"]
    ) -> None:
        self.item_unit, self.query_unit, self.transform = item_unit, query_unit, transform.detach()
        self.item_key_I3d = torch.einsum("imd,mde->ime", item_unit, self.transform[QUERY + 1 :]).contiguous()
        self.query_key_Qd = (query_unit @ self.transform[QUERY]).contiguous()

    @property
    def dim(self) -> int:
        return self.transform.shape[-1]

    @property
    def num_channels(self) -> int:
        return len(self.transform)

    def channel_vectors(self, probe: Probe) -> Float[Tensor, "T M d"]:
        """What each target asks of a channel's unit vectors: A_j u."""
        return torch.einsum("mde,te->tmd", self.transform, probe.query_Td)

    def merged(self, keys: Keys) -> Float[Tensor, "L d"]:
        """key_l = sum_j weight_lj unit_lj A_j; zero for a behaviour without any channel."""
        merged_Ld = np.empty((len(keys), self.dim), np.float32)
        weight_LM = np.ascontiguousarray(keys.weight_LM.numpy(), np.float32)
        _merge(self.query_key_Qd.numpy(), self.item_key_I3d.numpy(), *_rows(keys), weight_LM, merged_Ld)
        return torch.from_numpy(merged_Ld)

    def parts(self, keys: Keys) -> Float[Tensor, "L M d"]:
        """unit_lj A_j of each channel, zero where missing."""
        part_LMd = np.zeros((len(keys), self.num_channels, self.dim), np.float32)
        _gather(self.query_key_Qd.numpy(), self.item_key_I3d.numpy(), *_rows(keys), keys.present_LM.numpy(), part_LMd)
        return torch.from_numpy(part_LMd)


def _rows(keys: Keys) -> tuple[ndarray, ndarray]:
    return keys.query_L.numpy().astype(np.int64, copy=False), keys.item_L.numpy().astype(np.int64, copy=False)


def target_scale(gate_TM: Float[Tensor, "T M"], keys: Keys) -> Float[Tensor, "T L"]:
    """1 / sum_i gate[t, i] present[l, i]: what a target's gate is divided by; 0 for a behaviour without any channel."""
    total_TL = gate_TM @ keys.present_LM.to(gate_TM.dtype).T
    return torch.where(total_TL > 0, 1 / total_TL, 0.0)


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def _merge(query_key, item_key, query, item, weight, merged):
    for n in range(len(item)):
        merged[n] = 0
        for j in range(weight.shape[1]):
            w = weight[n, j]
            # Selected, not multiplied by zero: a missing row may hold anything, also NaN.
            if w != 0:
                row = query_key[query[n]] if j == 0 else item_key[item[n], j - 1]
                for i in range(merged.shape[1]):
                    merged[n, i] += w * row[i]


@numba.njit(nogil=True, cache=True)
@no_type_check
def _gather(query_key, item_key, query, item, present, part):
    for n in range(len(item)):
        for j in range(present.shape[1]):
            if present[n, j]:
                part[n, j] = query_key[query[n]] if j == 0 else item_key[item[n], j - 1]
