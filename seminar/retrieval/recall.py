"""Recall of an approximate retriever against exact relevance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seminar.retrieval.base import Keys, Probe, Retriever, TopK


@dataclass(frozen=True)
class Recall:
    """Share of the k most relevant behaviours found: by the method alone, and with its candidates re-scored."""

    k: int
    raw: float
    rescored: float


@torch.no_grad()
def recall_at(retriever: Retriever, exact: Retriever, requests: Sequence[tuple[Probe, Keys]], ks: Sequence[int]) -> list[float]:
    """Recall@k of `retriever`'s top-K against exact relevance, a mean over all targets of the requests; NaN without any.

    A behaviour counts as found if its exact relevance reaches the k-th best (to 1e-5 of the row's largest magnitude): repeats of
    one item are equally relevant, and any of them will do. Histories shorter than k count by their length, empty ones not.
    """
    found: list[list[Tensor]] = [[] for _ in ks]
    for probe, keys in requests:
        if not len(keys):
            continue
        truth_TL, index = exact.index(keys).relevance(probe), retriever.index(keys)
        for column, k in enumerate(ks):
            kept = min(k, truth_TL.shape[1])
            found[column].append(found_share(truth_TL, index.top_k(probe, kept)))
    return [torch.cat(shares).mean().item() if shares else math.nan for shares in found]


def found_share(truth_TL: Float[Tensor, "T L"], top: TopK) -> Float[Tensor, " T"]:
    """Recall of one top-K: the share of its K positions whose true relevance reaches the K-th best."""
    hit_TL = among_best(truth_TL, top.index_TK.shape[1]).double()
    # Positions increase; one that does not would be counted twice.
    counted = torch.cat([top.index_TK[:, :1] >= 0, top.index_TK.diff(dim=1) > 0], 1)
    return (hit_TL.gather(1, top.index_TK.clamp_min(0)) * counted).mean(1)


def among_best(relevance_TL: Float[Tensor, "T L"], k: int) -> Bool[Tensor, "T L"]:
    """Which behaviours are as relevant as the k-th best of their row."""
    kth_T1 = relevance_TL.topk(k, dim=1).values[:, -1:]
    return relevance_TL >= kth_T1 - 1e-5 * relevance_TL.abs().amax(1, keepdim=True)
