"""GSU over multi-modal product codes: 64 bytes a behaviour at 4 channels of 16 sub-spaces instead of 1 KiB.

The paper quantises the target too and reads M^2 tables (`symmetric_relevance`). The target is fixed, so the sum over its channels
moves in front, T_j[s][c] = <probe_j,s, C_j,s,c>, and one pass of M S look-ups a behaviour gives the same relevance, exact with
respect to the decoded keys. Codes alone recall too little: candidates are over-fetched and re-scored exactly.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor

from seminar.codes.codebook import CatalogueCodes, Codebooks
from seminar.errors import ArtifactError, explain
from seminar.retrieval.base import Keys, Probe, TopK, best, fold_gate
from seminar.retrieval.exact import ExactRetriever
from seminar.schema import NUM_CHANNELS


class PQRetriever:
    """Fetches overfetch * K behaviours by codes, re-scores them with `exact` and keeps K; without `exact` codes decide alone.

    Runs on the CPU. Raises VersionMismatch if the codes were made with other codebooks or another PSU, ArtifactError if they hold
    values outside the codebooks.
    """

    name = "pq"

    def __init__(
        self, codebooks: Codebooks, codes: CatalogueCodes, exact: ExactRetriever | None = None, overfetch: int = 4
    ) -> None:
        codes.stamp.require(codebooks.stamp, "codes")
        _check_range(codebooks, codes)
        self.codebooks = codebooks
        self.exact = exact
        self.overfetch = overfetch
        self.bytes_per_behaviour = float(NUM_CHANNELS * codebooks.num_subquantizers)
        self._centroid_MSCw = torch.from_numpy(codebooks.centroid_MSCw)
        self._item_code = codes.item_code_I3S
        # Row Q stands for "no query", so that -1 indexes it also where the catalogue has none.
        self._query_code = np.concatenate([codes.query_code_QS, np.zeros((1, codebooks.num_subquantizers), np.uint8)])

    @torch.no_grad()
    def relevance(self, probe: Probe, keys: Keys) -> Float[Tensor, "T L"]:
        """Relevance with each key replaced by what its codes decode to."""
        vector_TMd, weight_LM, scale_TL = fold_gate(probe, keys)
        table_TMSC = collapsed_tables(vector_TMd, self._centroid_MSCw)
        relevance_TL = torch.from_numpy(
            _look_up(table_TMSC.numpy(), self._codes(keys), np.ascontiguousarray(weight_LM.numpy(), np.float32))
        )
        return relevance_TL if scale_TL is None else relevance_TL * scale_TL

    @torch.no_grad()
    def top_k(self, probe: Probe, keys: Keys, k: int) -> TopK:
        """The K best of the overfetch * K that rank highest by codes."""
        relevance_TL = self.relevance(probe, keys)
        if self.exact is None:
            return best(relevance_TL, k)
        fetched = min(self.overfetch * k, relevance_TL.shape[1])
        return self.exact.rescore(probe, keys, best(relevance_TL, fetched).index_TK, k)

    def _codes(self, keys: Keys) -> UInt8[ndarray, "L M S"]:
        query_L1S = self._query_code[keys.query_L.numpy()][:, None]
        return np.concatenate([query_L1S, self._item_code[keys.item_L.numpy()]], 1)


def collapsed_tables(vector_TMd: Float[Tensor, "T M d"], centroid_MSCw: Float[Tensor, "M S C w"]) -> Float[Tensor, "T M S C"]:
    """T_j[s][c] = <probe_j,s, C_j,s,c> for each target: 64 KiB a target at M=4, S=16, C=256 in float32."""
    probe_TMSw = vector_TMd.unflatten(-1, (centroid_MSCw.shape[1], centroid_MSCw.shape[3]))
    return torch.einsum("tmsw,mscw->tmsc", probe_TMSw, centroid_MSCw).contiguous()


def symmetric_relevance(
    codebooks: Codebooks,
    target_code_TMS: UInt8[ndarray, "T M S"],
    target_weight_TM: Float[ndarray, "T M"],
    code_LMS: UInt8[ndarray, "L M S"],
    weight_LM: Float[ndarray, "L M"],
) -> Float[ndarray, "T L"]:
    """The paper's form, with the target quantised too: sum_ij gamma_i gamma_j sum_s <C_i,s,c(t), C_j,s,c(l)>, as M^2 S look-ups.

    The reference that the collapsed form is tested against; O(M^2 S C^2) table entries, made one (i, j, s) at a time.
    """
    relevance_TL = np.zeros((len(target_code_TMS), len(code_LMS)))
    channels, spaces = range(codebooks.centroid_MSCw.shape[0]), range(codebooks.num_subquantizers)
    for i, j, s in ((i, j, s) for i in channels for j in channels for s in spaces):
        left_Cw, right_Cw = (codebooks.centroid_MSCw[m, s].astype(np.float64) for m in (i, j))
        table_CC = left_Cw @ right_Cw.T
        gates_TL = target_weight_TM[:, i, None] * weight_LM[None, :, j]
        relevance_TL += gates_TL * table_CC[target_code_TMS[:, i, s, None], code_LMS[None, :, j, s]]
    return relevance_TL


def _check_range(codebooks: Codebooks, codes: CatalogueCodes) -> None:
    # The scan does not check bounds; a damaged code must not read past a table.
    limit = codebooks.centroid_MSCw.shape[2]
    largest = max(int(codes.item_code_I3S.max(initial=0)), int(codes.query_code_QS.max(initial=0)))
    spaces = {codes.item_code_I3S.shape[2], codes.query_code_QS.shape[1]}
    if largest >= limit or spaces != {codebooks.num_subquantizers}:
        got = f"codes up to {largest} in {spaces} sub-spaces"
        expected = f"below {limit} in {codebooks.num_subquantizers}"
        raise ArtifactError(explain(f"{codes.stamp}", got=got, expected=expected, fix="run fit-codebooks"))


def _look_up(
    table_TMSC: Float32[ndarray, "T M S C"], code_LMS: UInt8[ndarray, "L M S"], weight_LM: Float32[ndarray, "L M"]
) -> Float32[ndarray, "T L"]:
    relevance_TL = np.empty((len(table_TMSC), len(code_LMS)), np.float32)
    _scan(table_TMSC, code_LMS, weight_LM, relevance_TL)
    return relevance_TL


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.
@numba.njit(nogil=True, cache=True)
@no_type_check
def _scan(table, code, weight, relevance):
    for t in range(table.shape[0]):
        for n in range(code.shape[0]):
            total = np.float32(0)
            for m in range(code.shape[1]):
                if weight[n, m] != 0:
                    part = np.float32(0)
                    for s in range(code.shape[2]):
                        part += table[t, m, s, code[n, m, s]]
                    total += weight[n, m] * part
            relevance[t, n] = total
