"""Which requests are answered in the event loop itself: those that need nothing but memory and a few milliseconds.

A hop to a thread and back costs .2 ms of a core, and more while both wait for the interpreter; such a request takes two. A
replica has one core, so nobody else could have been served meanwhile.
"""

from seminar.client import api
from seminar.history.store import HistoryStore
from seminar.schema import NONE
from serve.rows import Live

MOST = 1 << 22
"""Targets times behaviours: some 4 ms. More would keep the loop from taking what else comes in."""


def at_hand(live: Live, store: HistoryStore, request: api.ScoreRequest) -> bool:
    """Whether the user's history is ready in memory and valid, and all targets are of the catalogue."""
    if request.explain or not store.embedded or any(target.item is not None for target in request.targets):
        return False
    texts = list({target.query for target in request.targets if target.query is not None})
    if texts and (live.bundle.query_row_by_text(texts) == NONE).any():
        return False
    version = store.version(request.user_id)
    kept = None if version is None else live.users.peek(live.bundle.version, request.user_id, version)
    if kept is None or kept.seen.history.ready is None:
        return False
    whole = request.time_ms is None or request.time_ms >= kept.newest_ms
    return whole and len(request.targets) * len(kept.seen.history.item_L) <= MOST
