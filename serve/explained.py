"""An explanation of one target in the client's ids: target, kept behaviours, recall, and columns of the history."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.bundle import Bundle
from seminar.client import api
from seminar.retrieval.base import TopK
from seminar.retrieval.recall import found_share
from seminar.schema import CHANNELS, NONE
from seminar.scorer import Explanation, Scored, ScoringHistory
from serve.rows import Live, Prepared


@dataclass(frozen=True)
class Found:
    """One target's score, what it rests on, and the exact relevance of every behaviour."""

    scored: Scored
    why: Explanation
    exact_L: Float[ndarray, " L"]
    retrieve_ms: float
    rank_ms: float
    exact_ms: float


def told(
    request: api.ExplainRequest, prepared: Prepared, top_k: int, found: Found, fields: dict[str, Any]
) -> api.ExplainResponse:
    """fields: those of an api.Answer, and the timings."""
    why, length = found.why, len(found.exact_L)
    kept_K = np.flatnonzero(why.position_TK[0] != NONE)
    position_K = why.position_TK[0, kept_K]
    left = np.ones(length, np.bool_)
    left[position_K] = False
    by_relevance = kept_K[np.argsort(-why.relevance_TK[0, kept_K], kind="stable")]
    return api.ExplainResponse(
        **fields,
        target=_target(prepared.live, request.target),
        score=float(found.scored.probability_T[0]),
        top_k=top_k,
        heads=why.attention_THK.shape[1],
        gate=dict(zip(CHANNELS, why.gate_TM[0].tolist(), strict=True)),
        kept=[_behaviour(prepared.live, prepared.seen.history, why, int(k)) for k in by_relevance],
        recall=_recall(found.exact_L, position_K) if length else None,
        next_best=float(found.exact_L[left].max()) if left.any() else None,
        history=_columns(prepared, found.exact_L, request.newest),
    )


def _target(live: Live, asked: api.Target) -> api.ExplainedTarget:
    bundle, row = live.bundle, int(live.bundle.item_row([asked.item_id or ""])[0])
    by_id = asked.query_id is not None
    query = int((bundle.query_row if by_id else bundle.query_row_by_text)([asked.query_id or asked.query or ""])[0])
    return api.ExplainedTarget(
        item_id=asked.item_id,
        text=asked.item.text if asked.item else bundle.item_texts[row],
        category=asked.item.category if asked.item else live.catalogue.category(row),
        query_id=None if query == NONE else bundle.query_ids[query],
        query=asked.query if query == NONE else bundle.query_texts[query],
    )


def _behaviour(live: Live, history: ScoringHistory, why: Explanation, k: int) -> api.ExplainedBehaviour:
    position = int(why.position_TK[0, k])
    item, query_id, query = int(history.item_L[position]), *_query(live.bundle, int(history.query_L[position]))
    return api.ExplainedBehaviour(
        position=position,
        item_id=live.bundle.item_ids[item],
        text=live.bundle.item_texts[item],
        category=live.catalogue.category(item),
        query_id=query_id,
        query=query,
        time_ms=int(history.time_ms_L[position]),
        relevance=float(why.relevance_TK[0, k]),
        channels=dict(zip(CHANNELS, why.channel_TKM[0, k].tolist(), strict=True)),
        attention_H=why.attention_THK[0, :, k].tolist(),
    )


def _recall(exact_L: Float[ndarray, " L"], position_K: Int[ndarray, " K"]) -> float:
    kept = TopK(torch.from_numpy(position_K)[None], torch.from_numpy(exact_L[position_K])[None])
    return found_share(torch.from_numpy(exact_L)[None], kept).item()


def _columns(prepared: Prepared, exact_L: Float[ndarray, " L"], newest: int) -> api.HistoryColumns:
    live, seen = prepared.live, prepared.seen
    shown = slice(max(0, len(exact_L) - newest), None)
    items, history = seen.history.item_L[shown], seen.history
    queries = [_query(live.bundle, row) for row in history.query_L[shown].tolist()]
    return api.HistoryColumns(
        position=np.arange(len(exact_L))[shown].tolist(),
        item_id=[live.bundle.item_ids[row] for row in items.tolist()],
        text=[live.bundle.item_texts[row] for row in items.tolist()],
        category=live.catalogue.categories(items),
        query_id=[query_id for query_id, _ in queries],
        query=[query for _, query in queries],
        time_ms=history.time_ms_L[shown].tolist(),
        request=seen.request_L[shown].tolist(),
        relevance=exact_L[shown].tolist(),
    )


def _query(bundle: Bundle, row: int) -> tuple[str | None, str | None]:
    return (None, None) if row == NONE else (bundle.query_ids[row], bundle.query_texts[row])
