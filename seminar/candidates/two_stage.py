"""Retrieve, then rank: the whole catalogue ordered by a ranker inside the candidates, everything else behind them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.candidates.full_ranking import competition
from seminar.candidates.proposer import Past, Proposer
from seminar.evaluate.evaluation import IMPRESSIONS, RANKED, Rows, facts_of, score_requests
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import HeldOut, ScoreFn, full_ranking_request
from seminar.schema import NONE
from seminar.sequences import Histories

TWO_STAGE = "full, one behaviour a user"
"""The protocol of these rows: the catalogue as under `full`, one held-out behaviour of each user, because a ranker is slower."""

Propose = Callable[[Histories, HeldOut], Int[ndarray, " C"]]
"""Distinct candidates for a held-out behaviour's request, best first."""


def rank_candidates(
    histories: Histories,
    pool: ItemPool,
    pairs: Sequence[HeldOut],
    scorers: Mapping[str, tuple[Propose, ScoreFn | None]],
    max_history: int,
) -> Rows:
    """Rows of every way to propose and rank; without a ranker, candidates stay in the order they were proposed in."""
    rows: list[dict[str, object]] = []
    facts = [facts_of(histories, pool, pair) for pair in pairs]
    for name, (propose, rank) in scorers.items():
        proposed = [propose(histories, pair) for pair in pairs]
        if rank is None:
            scores = [np.arange(len(items))[::-1] for items in proposed]
        else:
            requests = [full_ranking_request(histories, p, items, None) for p, items in zip(pairs, proposed, strict=True)]
            scores = score_requests(histories, requests, rank, max_history)
        for pair, fact, items, score_C in zip(pairs, facts, proposed, scores, strict=True):
            counts = _counts(histories, pair, items, np.asarray(score_C, np.float64), len(pool.train_count))
            rows.append({**fact, "protocol": TWO_STAGE, "scorer": name, **counts})
    return Rows.concat([Rows(pa.Table.from_pylist(rows, schema=RANKED), IMPRESSIONS.empty_table(), {})])


def _counts(
    histories: Histories, pair: HeldOut, item_C: Int[ndarray, " C"], score_C: Float[ndarray, " C"], num_items: int
) -> dict[str, int]:
    first = int(histories.offsets[pair.row])
    positive = int(histories.item[first + pair.position])
    together = np.unique(histories.item[first + pair.start : first + pair.end])
    others = num_items - len(together)
    inside = np.isin(item_C, together)
    place = np.flatnonzero(item_C == positive)
    if len(place):
        return {**competition(score_C, score_C[place[0]], score_C[inside]), "others": others}
    above = len(item_C) - int(inside.sum())
    return {"above": above, "tied": others - above, "others": others}


def most_popular(pool: ItemPool, count: int) -> Propose:
    """The same `count` items for everybody."""
    items = np.argsort(-pool.train_count, kind="stable")[:count].astype(np.int64)
    return lambda histories, pair: items


def by_proposer(proposer: Proposer, count: int, sources: tuple[str, ...]) -> Propose:
    """What the service would rank, from the history before the request and with its query."""

    def propose(histories: Histories, pair: HeldOut) -> Int[ndarray, " C"]:
        first = int(histories.offsets[pair.row])
        past = slice(first, first + pair.start)
        query = int(histories.query[first + pair.position])
        user = Past(*(column[past].astype(np.int64) for column in (histories.item, histories.query, histories.request)))
        return proposer.propose(user, NONE if query == NONE else query, count, sources=sources).item_C

    return propose
