"""Scores and candidates as answers, in the client's ids."""

import math
from typing import Any

from seminar.candidates.proposer import SOURCES
from seminar.client import api
from seminar.schema import TASKS
from seminar.scorer import Scored, Targets
from serve.explain import best_first, reasons
from serve.proposing import Proposed
from serve.rows import Asked, Live, Seen


def answer_fields(user_id: str, live: Live, seen: Seen, targets: Targets, scored: Scored) -> dict[str, Any]:
    """Fields of an api.Answer."""
    return {
        "bundle_version": live.bundle.version,
        "user_id": user_id,
        "known_user": seen.known_user,
        "task": TASKS[targets.task],
        "time_ms": targets.time_ms,
        "history_length": seen.stored,
        "history_used": len(seen.history.item_L),
        "retriever": scored.choice.method,
        "retriever_reason": scored.choice.reason,
    }


def recommended(request: api.RecommendRequest, asked: Asked, proposed: Proposed, scored: Scored) -> list[api.Recommendation]:
    """The n best candidates, best first; of equals the one that was proposed first."""
    bundle, found = asked.live.bundle, proposed.candidates
    items = []
    for place, candidate in enumerate(best_first(scored.probability_T, request.n).tolist()):
        row, logit = int(found.item_C[candidate]), float(found.score_C[candidate])
        items.append(
            api.Recommendation(
                item_id=bundle.item_ids[row],
                text=bundle.item_texts[row],
                score=float(scored.probability_T[candidate]),
                sources=[source for source, held in zip(SOURCES, found.origin_CS[candidate], strict=True) if held],
                retrieval_score=None if math.isnan(logit) else logit,
                because=reasons(bundle, asked.seen.history, scored, place, request.because),
            )
        )
    return items
