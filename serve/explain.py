"""Why a target scores as it does, in the client's ids."""

import numpy as np

from seminar.bundle import Bundle
from seminar.schema import CHANNELS, NONE
from seminar.scorer import Explanation, Scored, ScoringHistory
from serve import api


def explanations(
    bundle: Bundle, request: api.ScoreRequest, history: ScoringHistory, scored: Scored
) -> list[api.TargetExplanation]:
    """The best `explain_top` targets, best first; ties keep the request's order."""
    assert scored.explanation is not None
    best = np.argsort(-scored.probability_T, kind="stable")[: request.explain_top]
    return [_one(bundle, request, history, scored, scored.explanation, int(t)) for t in best]


def _one(
    bundle: Bundle, request: api.ScoreRequest, history: ScoringHistory, scored: Scored, why: Explanation, target: int
) -> api.TargetExplanation:
    asked = request.targets[target]
    position_K = why.position_TK[target]
    kept = np.flatnonzero(position_K != NONE)
    kept = kept[np.argsort(-why.relevance_TK[target, kept], kind="stable")]
    item_row = int(bundle.item_row([asked.item_id])[0])
    query = asked.query
    if asked.query_id is not None:
        query = bundle.query_texts[int(bundle.query_row([asked.query_id])[0])]
    return api.TargetExplanation(
        target=target,
        item_id=asked.item_id,
        text=bundle.item_texts[item_row],
        query=query,
        score=float(scored.probability_T[target]),
        gate=dict(zip(CHANNELS, why.gate_TM[target].tolist(), strict=True)),
        behaviours=[_behaviour(bundle, history, why, target, int(k)) for k in kept],
    )


def _behaviour(bundle: Bundle, history: ScoringHistory, why: Explanation, target: int, k: int) -> api.KeptBehaviour:
    position = int(why.position_TK[target, k])
    item, query = int(history.item_L[position]), int(history.query_L[position])
    return api.KeptBehaviour(
        item_id=bundle.item_ids[item],
        text=bundle.item_texts[item],
        query_id=bundle.query_ids[query] if query != NONE else None,
        query=bundle.query_texts[query] if query != NONE else None,
        time_ms=int(history.time_ms_L[position]),
        relevance=float(why.relevance_TK[target, k]),
        attention=float(why.attention_THK[target, :, k].mean()),
        channels=dict(zip(CHANNELS, why.channel_TKM[target, k].tolist(), strict=True)),
    )
