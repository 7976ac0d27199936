"""Exact GSU over the catalogue's unit vectors: 1 KiB a behaviour at 4 channels of 64, and the measure of all others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seminar.retrieval.base import Keys, Probe, Retriever, TopK, best, fold_gate


class ExactRetriever:
    """Scores every behaviour with its own unit vectors, in float32.

    item_unit: [I, 3, d] text, image, attributes of the catalogue. query_unit: [Q, d]. Rows of missing vectors are never used.
    """

    name = "exact"

    def __init__(self, item_unit: Float[Tensor, "I 3 d"], query_unit: Float[Tensor, "Q d"]) -> None:
        self.item_unit = item_unit
        # Row Q stands for "no query", so that -1 indexes it also where the catalogue has none.
        self.query_unit = torch.cat([query_unit, query_unit.new_zeros(1, query_unit.shape[1])])
        self.bytes_per_behaviour = float((1 + item_unit.shape[1]) * item_unit.shape[2] * item_unit.element_size())

    @torch.no_grad()
    def relevance(self, probe: Probe, keys: Keys) -> Float[Tensor, "T L"]:
        """One matrix product of gated probes [T, M d] and gated keys [L, M d]."""
        vector_TMd, weight_LM, scale_TL = fold_gate(probe, keys)
        relevance_TL = vector_TMd.flatten(1) @ self._gated(keys.item_L, keys.query_L, weight_LM).flatten(1).T
        return relevance_TL if scale_TL is None else relevance_TL * scale_TL

    @torch.no_grad()
    def top_k(self, probe: Probe, keys: Keys, k: int) -> TopK:
        """The K best of all."""
        return best(self.relevance(probe, keys), k)

    def rescore(self, probe: Probe, keys: Keys, position_TR: Int[Tensor, "T R"], k: int) -> TopK:
        """The k best of R candidate positions of each target. Each distinct candidate is looked up once, for all targets."""
        rows, inverse_TR = torch.unique(position_TR, return_inverse=True)
        candidates = Keys(keys.item_L[rows], keys.query_L[rows], keys.present_LM[rows], keys.weight_LM[rows])
        return best(self.relevance(probe, candidates).gather(1, inverse_TR), k, position_TR)

    def _gated(
        self, item_N: Int[Tensor, " N"], query_N: Int[Tensor, " N"], weight_NM: Float[Tensor, "N M"]
    ) -> Float[Tensor, "N M d"]:
        """weight * unit; selected, not multiplied, where the weight is zero: a missing row may hold anything, also NaN."""
        unit_NMd = torch.cat([self.query_unit[query_N][:, None], self.item_unit[item_N]], 1)
        return torch.where((weight_NM != 0)[..., None], unit_NMd * weight_NM[..., None], 0.0)


@dataclass(frozen=True)
class Recall:
    """Share of the k most relevant behaviours found: by approximate relevance alone, and by `top_k` with its re-scoring."""

    k: int
    raw: float
    rescored: float


@torch.no_grad()
def recall_curve(
    retriever: Retriever, exact: ExactRetriever, requests: Sequence[tuple[Probe, Keys]], ks: Sequence[int]
) -> list[Recall]:
    """Recall@k of `retriever` against exact, a mean over all targets of the requests.

    A behaviour counts as found if its exact relevance reaches the k-th best (to 1e-5 of the row's largest magnitude): repeats of
    one item are equally relevant, and any of them will do. Histories shorter than k count by their length, empty ones not.
    """
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for probe, keys in requests:
        if not len(keys.item_L):
            continue
        truth_TL, guess_TL = exact.relevance(probe, keys), retriever.relevance(probe, keys)
        for k in ks:
            kept = min(k, truth_TL.shape[1])
            hit_TL = _among_best(truth_TL, kept).double()
            ranked = best(guess_TL, kept), retriever.top_k(probe, keys, kept)
            found[k].append(torch.stack([hit_TL.gather(1, top.index_TK).mean(1) for top in ranked]))
    means = {k: torch.cat(shares, 1).mean(1).tolist() if shares else (math.nan, math.nan) for k, shares in found.items()}
    return [Recall(k, *mean) for k, mean in means.items()]


def _among_best(relevance_TL: Float[Tensor, "T L"], k: int) -> Bool[Tensor, "T L"]:
    kth_T1 = relevance_TL.topk(k, dim=1).values[:, -1:]
    return relevance_TL >= kth_T1 - 1e-5 * relevance_TL.abs().amax(1, keepdim=True)
