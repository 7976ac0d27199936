"""Why a target scores as it does, in the client's ids."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.bundle import Bundle
from seminar.client import api
from seminar.compiled.scorer import Found
from seminar.schema import CHANNELS, NONE
from seminar.scorer import Explanation, Retrieved, Scored, ScoringHistory, Targets, TwoStageScorer


def best_first(probability_T: Float[ndarray, " T"], count: int) -> Int[ndarray, " B"]:
    """Positions of the `count` best targets, best first; ties keep the request's order."""
    return np.argsort(-probability_T, kind="stable")[:count]


def rank(scorer: TwoStageScorer, targets: Targets, retrieved: Retrieved, explain_top: int) -> Scored:
    """ESU and heads over what the GSU kept. Row i of the explanation is about the i-th best target, for the `explain_top` best.

    Those are ranked again with reasons; reasons for all 200 targets of a request would take longer than ranking them three times.
    """
    scored = scorer.rank(targets, retrieved)
    if not explain_top:
        return scored
    best = best_first(scored.probability_T, explain_top)
    some = replace(targets, item_T=targets.item_T[best], query_T=targets.query_T[best])
    theirs = replace(
        retrieved,
        kept_TK=retrieved.kept_TK[best],
        relevance_TK=retrieved.relevance_TK[best],
        cross_TF=retrieved.cross_TF[best],
    )
    return replace(scored, explanation=scorer.rank(some, theirs, explain=True).explanation)


def rank_found(scorer: TwoStageScorer, history: ScoringHistory, targets: Targets, found: Found, explain_top: int) -> Scored:
    """The same of what `TwoStageScorer.find` kept."""
    scored = scorer.rank_found(found)
    if not explain_top:
        return scored
    best = best_first(scored.probability_T, explain_top)
    some = replace(targets, item_T=targets.item_T[best], query_T=targets.query_T[best])
    return replace(scored, explanation=scorer.rank(some, scorer.retrieved(history, some, found, best), explain=True).explanation)


def explanations(
    bundle: Bundle, request: api.ScoreRequest, history: ScoringHistory, scored: Scored
) -> list[api.TargetExplanation]:
    """The best `explain_top` targets, best first."""
    best = best_first(scored.probability_T, request.explain_top).tolist()
    return [_one(bundle, request, history, scored, place, target) for place, target in enumerate(best)]


def reasons(bundle: Bundle, history: ScoringHistory, scored: Scored, place: int, most: int) -> list[api.Reason]:
    """The behaviours with the most attention for the best target but `place`, most first; none where nothing was asked."""
    why = scored.explanation
    if why is None:
        return []
    attention_K = why.attention_THK[place].mean(0)
    kept = np.flatnonzero(why.position_TK[place] != NONE)
    kept = kept[np.argsort(-attention_K[kept], kind="stable")][:most]
    return [api.Reason(**_behaviour(bundle, history, why, place, int(k))) for k in kept]


def _one(
    bundle: Bundle, request: api.ScoreRequest, history: ScoringHistory, scored: Scored, place: int, target: int
) -> api.TargetExplanation:
    why = scored.explanation
    assert why is not None
    asked = request.targets[target]
    kept = np.flatnonzero(why.position_TK[place] != NONE)
    kept = kept[np.argsort(-why.relevance_TK[place, kept], kind="stable")]
    text = asked.item.text if asked.item else bundle.item_texts[int(bundle.item_row([asked.item_id or ""])[0])]
    query = asked.query
    if asked.query_id is not None:
        query = bundle.query_texts[int(bundle.query_row([asked.query_id])[0])]
    return api.TargetExplanation(
        target=target,
        item_id=asked.item_id,
        text=text,
        query=query,
        score=float(scored.probability_T[target]),
        gate=dict(zip(CHANNELS, why.gate_TM[place].tolist(), strict=True)),
        behaviours=[_kept(bundle, history, why, place, int(k)) for k in kept],
    )


def _kept(bundle: Bundle, history: ScoringHistory, why: Explanation, place: int, k: int) -> api.KeptBehaviour:
    query = int(history.query_L[why.position_TK[place, k]])
    return api.KeptBehaviour(
        **_behaviour(bundle, history, why, place, k),
        query_id=bundle.query_ids[query] if query != NONE else None,
        relevance=float(why.relevance_TK[place, k]),
        channels=dict(zip(CHANNELS, why.channel_TKM[place, k].tolist(), strict=True)),
    )


def _behaviour(bundle: Bundle, history: ScoringHistory, why: Explanation, place: int, k: int) -> dict[str, Any]:
    """Fields of a Reason: the behaviour kept at column k for the best target but `place`."""
    position = int(why.position_TK[place, k])
    item, query = int(history.item_L[position]), int(history.query_L[position])
    return {
        "item_id": bundle.item_ids[item],
        "text": bundle.item_texts[item],
        "query": bundle.query_texts[query] if query != NONE else None,
        "time_ms": int(history.time_ms_L[position]),
        "attention": float(why.attention_THK[place, :, k].mean()),
    }
