"""Which requests are answered in the event loop itself: those that need nothing but memory and a few milliseconds.

A hop to a thread and back takes two changes of thread, and more while both wait for the interpreter; such a request takes two
hops. A replica has one core, so nobody else could have been served meanwhile.
"""

from seminar.client import api
from seminar.history.store import HistoryStore
from seminar.schema import NONE
from seminar.scorer import ScoringHistory
from serve.rows import Live, Seen
from serve.targets import now_ms

MOST = 5 << 20
"""Targets times (distinct pairs + behaviours spread + A_TARGET): some 4 ms by `benchmarks/scorer.py`, no longer in the loop."""
A_TARGET = 15_000
"""What ESU and heads cost a target, in pairs searched."""


def at_hand(live: Live, store: HistoryStore, request: api.ScoreRequest) -> tuple[Seen, bytes] | None:
    """The user's history and its version, if it is ready in memory and valid, covers the moment, and all targets are of the
    catalogue."""
    if request.explain or not store.embedded or any(target.item is not None for target in request.targets):
        return None
    texts = list({target.query for target in request.targets if target.query is not None})
    if texts and (live.bundle.query_row_by_text(texts) == NONE).any():
        return None
    version = store.version(request.user_id)
    if version is None or (kept := live.users.peek(live.bundle.version, request.user_id, version)) is None:
        return None
    history, targets, moment = kept.seen.history, len(request.targets), request.time_ms or now_ms()
    if history.ready is None or targets * (len(history.ready.pairs) + _spread(live, history) + A_TARGET) > MOST:
        return None
    if moment < kept.newest_ms or not live.scorer.is_ready(history, targets, moment):
        return None
    return kept.seen, version


def _spread(live: Live, history: ScoringHistory) -> int:
    """Behaviours of the pairs fetched for a target, at most: some 2 K pairs, and no more than K of each."""
    return min(len(history.item_L), 2 * live.bundle.config.top_k**2)
