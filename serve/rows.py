"""Ids of a request and of the store to catalogue rows of one bundle, and back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.bundle import Bundle, normal_text
from seminar.candidates.proposer import Past
from seminar.client import api
from seminar.history.store import FREE_TEXT, CatalogueRows, HistoryStore, UserHistory
from seminar.schema import NONE
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from serve.catalogue import Catalogue
from serve.proposing import Wish
from serve.targets import now_ms, query_rows, targets_of, task_of
from serve.users import UserCache


@dataclass(frozen=True)
class Live:
    """A bundle ready to score, and the translation of stored ids to its rows; a request keeps the one it began with.

    users: what is kept of users between requests. ready: kept histories are made ready for the scorer of this process.
    """

    scorer: TwoStageScorer
    items: CatalogueRows
    queries: CatalogueRows
    users: UserCache["Kept"]
    ready: bool
    catalogue: Catalogue

    @classmethod
    def of(cls, scorer: TwoStageScorer, store: HistoryStore, users: UserCache["Kept"], *, ready: bool) -> "Live":
        bundle = scorer.bundle
        queries = CatalogueRows(store, "queries", partial(_query_rows, bundle))
        items = CatalogueRows(store, "items", bundle.item_row)
        return cls(scorer, items, queries, users, ready, Catalogue(bundle))

    @property
    def bundle(self) -> Bundle:
        return self.scorer.bundle


@dataclass(frozen=True)
class Seen:
    """A user's behaviours up to the moment of a request. history: those that the bundle knows, in its rows; request_L: the
    numbers of their requests; stored: how many there are in all."""

    history: ScoringHistory
    request_L: Int[ndarray, " L"]
    stored: int
    known_user: bool

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        history = self.history
        columns = history.item_L, history.query_L, history.time_ms_L, self.request_L
        return sum(column.nbytes for column in columns) + (0 if history.ready is None else history.ready.nbytes)


@dataclass(frozen=True)
class Kept:
    """What a cache holds of a user: all behaviours, and the time of the newest of them, known to the bundle or not."""

    seen: Seen
    newest_ms: int


@dataclass(frozen=True)
class Prepared:
    """A score request in rows of one bundle."""

    live: Live
    seen: Seen
    targets: Targets


@dataclass(frozen=True)
class Asked:
    """A recommend request in rows of one bundle: what candidates are wanted for, and what makes targets of them."""

    live: Live
    seen: Seen
    wish: Wish
    query: int
    unseen_Xd: Float[ndarray, "X d"] | None
    task: int
    time_ms: int

    def targets(self, item_C: Int[ndarray, " C"]) -> Targets:
        """Candidates as the scorer takes them, each with the query of the request."""
        return Targets(item_C, np.full(len(item_C), self.query), self.task, self.time_ms, self.unseen_Xd)


def prepare(
    live: Live, store: HistoryStore, request: api.ScoreRequest, where: str = "targets[{}]", seen: Seen | None = None
) -> Prepared:
    """Everything the scorer needs; Refused for an item or query id that the bundle does not hold. where: what a client calls a
    target. seen: the history, if it is at hand."""
    targets = targets_of(live.scorer, request, where)
    return Prepared(live, seen or _seen(live, store, request), targets)


def prepare_recommend(live: Live, store: HistoryStore, request: api.RecommendRequest, candidates: int) -> Asked:
    """Everything that proposer and scorer need; Refused for a query id that the bundle does not hold."""
    query_1, unseen_Xd = query_rows(live.scorer, [request], "query_id")
    query, queried = int(query_1[0]), bool(request.query_id or request.query)
    seen = _seen(live, store, request)
    past = Past(seen.history.item_L, seen.history.query_L, seen.request_L)
    # A text outside the catalogue has another vector in the towers' space than in the scorer's.
    wish = Wish(past, query if unseen_Xd is None else NONE, None if unseen_Xd is None else request.query, candidates)
    return Asked(live, seen, wish, query, unseen_Xd, task_of(request, queried), request.time_ms or now_ms())


def _seen(live: Live, store: HistoryStore, request: api.ScoreRequest | api.RecommendRequest) -> Seen:
    kept = _kept(live, store, request.user_id)
    if kept is None:
        return _in_rows(live, UserHistory.empty(), None)
    if request.time_ms is None or request.time_ms >= kept.newest_ms:
        return kept.seen
    stored = store.read(request.user_id)
    return _in_rows(live, stored[stored.time_ms_L <= request.time_ms], request.user_id)


def _kept(live: Live, store: HistoryStore, user_id: str) -> Kept | None:
    """A user's whole history, from the cache if the store still has the version it was made from; None for an unknown user."""
    # Asked before reading: what is appended in between makes the entry out of date, never the history.
    version = store.version(user_id)
    if version is None:
        return None
    kept = live.users.get(live.bundle.version, user_id, version)
    if kept is None:
        stored = store.read(user_id)
        seen = _in_rows(live, stored, user_id)
        if live.ready:
            seen = replace(seen, history=live.scorer.ready(seen.history))
        kept = Kept(seen, int(stored.time_ms_L.max(initial=0)))
        live.users.put(live.bundle.version, user_id, version, kept, seen.nbytes)
    return kept


def _in_rows(live: Live, stored: UserHistory, user_id: str | None) -> Seen:
    item_L = live.items(stored.item_L)
    used = item_L != NONE
    history = ScoringHistory(item_L[used], live.queries(stored.query_L[used]), stored.time_ms_L[used], user_id)
    return Seen(history, stored.request_L[used], len(stored), user_id is not None)


def query_name(bundle: Bundle, event: api.EventIn) -> str | None:
    """How an event's query is stored: by id where it has one, else as text that a later bundle may know."""
    if event.query is None:
        return event.query_id
    row = int(bundle.query_row_by_text([event.query])[0])
    return FREE_TEXT + normal_text(event.query) if row == NONE else bundle.query_ids[row]


def history_page(live: Live, store: HistoryStore, user_id: str, limit: int) -> api.HistoryResponse:
    """A user's newest `limit` behaviours, newest last; UnknownUser if there is no such user."""
    stored, bundle = store.read(user_id), live.bundle
    newest = stored[len(stored) - min(limit, len(stored)) :]
    rows = live.items(newest.item_L)
    columns = zip(
        store.names_of("items", newest.item_L),
        rows.tolist(),
        live.catalogue.categories(np.maximum(rows, 0)),
        store.names_of("queries", newest.query_L),
        live.queries(newest.query_L).tolist(),
        newest.time_ms_L.tolist(),
        newest.request_L.tolist(),
        strict=True,
    )
    behaviours = []
    for item, row, category, query, query_row, time_ms, request in columns:
        query_id, query_text = _stored_query(bundle, query, query_row)
        behaviours.append(
            api.StoredBehaviour(
                item_id=str(item),
                text=bundle.item_texts[row] if row != NONE else None,
                category=category if row != NONE else None,
                query_id=query_id,
                query=query_text,
                time_ms=time_ms,
                request=request,
                in_bundle=row != NONE,
            )
        )
    return api.HistoryResponse(user_id=user_id, length=len(stored), behaviours=behaviours, bundle_version=bundle.version)


def _stored_query(bundle: Bundle, name: str | None, row: int) -> tuple[str | None, str | None]:
    if row != NONE:
        return bundle.query_ids[row], bundle.query_texts[row]
    if name is not None and name.startswith(FREE_TEXT):
        return None, name.removeprefix(FREE_TEXT)
    return name, None


def _query_rows(bundle: Bundle, names: Sequence[str]) -> Int[ndarray, " N"]:
    by_id = bundle.query_row(names)
    by_text = bundle.query_row_by_text([name.removeprefix(FREE_TEXT) for name in names])
    return np.where([name.startswith(FREE_TEXT) for name in names], by_text, by_id)
