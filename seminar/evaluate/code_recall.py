"""Recall of product codes on real requests: the histories and candidates of an evaluation, against exact retrieval."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from seminar.batching import Request
from seminar.channels import UnitTables, encode_pairs
from seminar.codes.codebook import CatalogueCodes, Codebooks
from seminar.gate import GatedPairs
from seminar.ranker import Ranker
from seminar.retrieval.base import Keys, Probe
from seminar.retrieval.exact import ExactRetriever
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.pq import PQRetriever
from seminar.retrieval.recall import Recall, recall_at
from seminar.retrieval.rescored import RescoredRetriever
from seminar.sequences import Histories


def code_recall(
    ranker: Ranker,
    units: UnitTables,
    codes: tuple[Codebooks, CatalogueCodes],
    histories: Histories,
    requests: Sequence[Request],
    ks: Sequence[int],
    overfetch: float,
) -> list[Recall]:
    """Recall@k of the codes, alone and re-scored, as a mean over the targets of the requests (whole histories, not truncated)."""
    space = KeySpace(units.item_unit, units.query_unit, ranker.gsu.key_transform)
    exact, coded = ExactRetriever(space), PQRetriever(space, *codes)
    probes = [probe_and_keys(ranker, units, histories, request) for request in requests]
    raw, rescored = (recall_at(r, exact, probes, ks) for r in (coded, RescoredRetriever(coded, space, overfetch)))
    return [Recall(*row) for row in zip(ks, raw, rescored, strict=True)]


@torch.no_grad()
def probe_and_keys(ranker: Ranker, units: UnitTables, histories: Histories, request: Request) -> tuple[Probe, Keys]:
    """What the GSU asks for the targets of one request, and of what history."""
    first = int(histories.offsets[request.row])
    seen = slice(first, first + request.end)
    target, _, _ = _gated(ranker, units, request.item_T, request.query_T)
    behaviour, item_L, query_L = _gated(ranker, units, histories.item[seen], histories.query[seen])
    probe = ranker.gsu.probe(ranker.gsu.merged(target), target.gate_logit_NM)
    return probe, Keys(item_L, query_L, behaviour.pairs.present_NM, behaviour.weight_NM)


def _gated(
    ranker: Ranker, units: UnitTables, item_N: Int[ndarray, " N"], query_N: Int[ndarray, " N"]
) -> tuple[GatedPairs, Int[Tensor, " N"], Int[Tensor, " N"]]:
    item, query = torch.from_numpy(item_N.astype(np.int64)), torch.from_numpy(query_N.astype(np.int64))
    return ranker.gsu.gated(encode_pairs(units, item, query)), item, query
