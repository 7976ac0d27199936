"""Multi-modal PQ in floats: the paper's symmetric form, and the collapsed form that the SIMD look-ups are measured against.

    symmetric    sum_ij gamma_i(t) gamma_j(l) sum_s <C_i,s,c(t), C_j,s,c(l)>      target quantised too, M^2 S look-ups a behaviour
    collapsed    sum_j gamma_j(l) sum_s T_j[s][c(l)],  T_j[s][c] = <v_j,s, C_j,s,c>                       M S look-ups a behaviour

With v_j = sum_i gamma_i(t) decoded_i(t) they are one sum in two orders. Both are plain numba, so that their times compare too.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor

from seminar.codes.codebook import CatalogueCodes, Codebooks
from seminar.codes.rotation import is_identity
from seminar.errors import ConfigError, explain
from seminar.retrieval.base import Keys, Probe, TopK, best
from seminar.retrieval.key_space import KeySpace, target_scale
from seminar.schema import NUM_CHANNELS


class CollapsedRetriever:
    """What `PQRetriever` computes, in float32 and plain loops: exact with respect to decoded keys."""

    name = "pq, collapsed in floats"

    def __init__(self, space: KeySpace, codebooks: Codebooks, codes: CatalogueCodes) -> None:
        codes.stamp.require(codebooks.stamp, "codes")
        self.space, self.codebooks, self.codes = space, codebooks, codes
        self.bytes_per_behaviour = float(NUM_CHANNELS * codebooks.num_subquantizers)

    def index(self, keys: Keys) -> "CollapsedIndex":
        """Gather the codes of every behaviour."""
        return CollapsedIndex(self, keys)


class CollapsedIndex:
    """Codes of one history, a byte each."""

    def __init__(self, retriever: CollapsedRetriever, keys: Keys) -> None:
        self._retriever, self._keys, self._code_LMS = retriever, keys, gather_codes(retriever.codes, keys)

    def __len__(self) -> int:
        return len(self._keys)

    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Relevance with each key replaced by what its codes decode to."""
        vector_TMd, weight_LM = self._retriever.space.channel_vectors(probe), self._keys.weight_LM
        if probe.gate_TM is not None:
            vector_TMd, weight_LM = vector_TMd * probe.gate_TM[..., None], self._keys.present_LM
        tables = collapsed_tables(vector_TMd.numpy(), self._retriever.codebooks)
        relevance_TL = np.empty((len(vector_TMd), len(self)), np.float32)
        scan_collapsed(tables, self._code_LMS, np.ascontiguousarray(weight_LM.numpy(), np.float32), relevance_TL)
        found_TL = torch.from_numpy(relevance_TL)
        return found_TL if probe.gate_TM is None else found_TL * target_scale(probe.gate_TM, self._keys)

    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best by that relevance."""
        return best(self.relevance(probe), k)


def gather_codes(codes: CatalogueCodes, keys: Keys) -> UInt8[ndarray, "L M S"]:
    """Codes of every behaviour and channel; 0 without a query."""
    none_1S = np.zeros((1, codes.query_code_QS.shape[1]), np.uint8)
    query_L1S = np.concatenate([codes.query_code_QS, none_1S])[keys.query_L.numpy()][:, None]
    return np.concatenate([query_L1S, codes.item_code_I3S[keys.item_L.numpy()]], 1)


def symmetric_relevance(
    codebooks: Codebooks,
    target_code_TMS: UInt8[ndarray, "T M S"],
    target_weight_TM: Float[ndarray, "T M"],
    code_LMS: UInt8[ndarray, "L M S"],
    weight_LM: Float[ndarray, "L M"],
) -> Float32[ndarray, "T L"]:
    """The paper's form for targets that are pairs of the catalogue themselves."""
    channels = code_LMS.shape[1]
    code_TIMS = np.repeat(target_code_TMS[:, :, None], channels, 2)
    weight_TIM = np.repeat(target_weight_TM[:, :, None], channels, 2).astype(np.float32)
    relevance_TL = np.empty((len(target_code_TMS), len(code_LMS)), np.float32)
    weight_LM = np.ascontiguousarray(weight_LM, np.float32)
    scan_symmetric(symmetric_tables(codebooks), code_TIMS, weight_TIM, code_LMS, weight_LM, relevance_TL)
    return relevance_TL


def symmetric_tables(codebooks: Codebooks) -> Float32[ndarray, "M M S C C"]:
    """<C_i,s,a, C_j,s,b> of all pairs of channels: 64 MiB at 4 channels of 16 x 256. ConfigError for rotated codebooks."""
    if not all(map(is_identity, codebooks.rotation_Mdd)):
        fix = "fit them with rotation = none"
        raise ConfigError(explain("symmetric look-ups", got="rotated codebooks", expected="unrotated ones", fix=fix))
    table = np.einsum("isaw,jsbw->ijsab", codebooks.centroid_MSCw, codebooks.centroid_MSCw, optimize=True)
    return np.ascontiguousarray(table, np.float32)


def collapsed_tables(vector_TMd: Float[ndarray, "T M d"], codebooks: Codebooks) -> Float32[ndarray, "T M S C"]:
    """T_j[s][c] = <v_j R_j, C_j,s,c> by sub-space: 64 KiB a target at M=4, S=16, C=256."""
    asked_TMSw = codebooks.rotated(vector_TMd).reshape(*vector_TMd.shape[:2], codebooks.num_subquantizers, -1)
    return np.ascontiguousarray(np.einsum("tmsw,mscw->tmsc", asked_TMSw, codebooks.centroid_MSCw, optimize=True), np.float32)


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def scan_symmetric(table, target_code, target_weight, code, weight, relevance):
    """target_code [T, i, j, S] and target_weight [T, i, j]: of what channel j is asked, by the codebook of channel i."""
    for t in range(len(target_code)):
        for n in range(len(code)):
            total = np.float32(0)
            for i in range(code.shape[1]):
                for j in range(code.shape[1]):
                    gate = target_weight[t, i, j] * weight[n, j]
                    if gate != 0:
                        part = np.float32(0)
                        for s in range(code.shape[2]):
                            part += table[i, j, s, target_code[t, i, j, s], code[n, j, s]]
                        total += gate * part
            relevance[t, n] = total


@numba.njit(nogil=True, cache=True)
@no_type_check
def scan_collapsed(table, code, weight, relevance):
    """table [T, M, S, C], code [L, M, S], weight [L, M]."""
    for t in range(len(table)):
        for n in range(len(code)):
            total = np.float32(0)
            for j in range(code.shape[1]):
                if weight[n, j] != 0:
                    part = np.float32(0)
                    for s in range(code.shape[2]):
                        part += table[t, j, s, code[n, j, s]]
                    total += weight[n, j] * part
            relevance[t, n] = total
