"""Ranking the whole catalogue for each held-out behaviour, warm and new items apart, by any way to score every item.

The rest of a held-out request is neither found nor in the way: it is left out of what the positive competes with. Items of the
user's history are not removed, since what was taken before is taken again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from seminar.batching import WindowBatch, collate_windows
from seminar.candidates.tower import Asked, DualTower, item_vectors, most_read, user_vectors
from seminar.evaluate.evaluation import FULL, IMPRESSIONS, RANKED, Rows, facts_of
from seminar.evaluate.metrics import check_numbers
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import HeldOut
from seminar.schema import NONE
from seminar.sequences import Histories

NEW_ONLY = "full, new items"
"""The protocol that ranks an item unseen in training among the other unseen ones: what a page of new items needs."""
BLOCK = 256
"""Held-out behaviours scored at once: 80 MB of scores for 80,000 items."""


@dataclass(frozen=True)
class QueryCounts:
    """item[offsets[q]:offsets[q+1]] were taken count times each under query q in training."""

    offsets: Int[ndarray, " Q1"]
    item: Int[ndarray, " E"]
    count: Int[ndarray, " E"]

    @classmethod
    def fit(cls, query_N: Int[ndarray, " N"], item_N: Int[ndarray, " N"], num_queries: int) -> "QueryCounts":
        """From training behaviours; those without a query (-1) are left out."""
        asked = query_N != NONE
        pair, count = np.unique(np.stack([query_N[asked], item_N[asked]]), axis=1, return_counts=True)
        return cls(np.searchsorted(pair[0], np.arange(num_queries + 1)), pair[1].astype(np.int64), count)

    def of(self, query: int) -> tuple[Int[ndarray, " E"], Int[ndarray, " E"]]:
        known = 0 <= query < len(self.offsets) - 1
        span = slice(self.offsets[query], self.offsets[query + 1]) if known else slice(0)
        return self.item[span], self.count[span]


CatalogueScores = Callable[[Histories, Sequence[HeldOut]], Float[ndarray, "N I"]]
"""One score an item of the catalogue for each held-out behaviour, from what came before its request and its query."""


def rank_catalogue(
    histories: Histories, pool: ItemPool, pairs: Sequence[HeldOut], scorers: Mapping[str, CatalogueScores]
) -> Rows:
    """Rows of every scorer under FULL, and under NEW_ONLY where the item is unseen in training."""
    unseen_I = pool.train_count == 0
    rows: list[dict[str, object]] = []
    for first in range(0, len(pairs), BLOCK):
        block = pairs[first : first + BLOCK]
        facts = [facts_of(histories, pool, pair) for pair in block]
        for name, score in scorers.items():
            for pair, fact, score_I in zip(block, facts, score(histories, block), strict=True):
                check_numbers(score_I)
                rows += _ranked(histories, pair, {**fact, "scorer": name}, score_I, unseen_I)
    table = pa.Table.from_pylist(rows, schema=RANKED)
    return Rows.concat([Rows(table, IMPRESSIONS.empty_table(), {})])


def _ranked(
    histories: Histories, pair: HeldOut, facts: dict[str, object], score_I: Float[ndarray, " I"], unseen_I: Bool[ndarray, " I"]
) -> list[dict[str, object]]:
    first = int(histories.offsets[pair.row])
    positive = int(histories.item[first + pair.position])
    together = np.unique(histories.item[first + pair.start : first + pair.end])
    rows = [{**facts, "protocol": FULL, **competition(score_I, score_I[positive], score_I[together])}]
    if unseen_I[positive]:
        together = together[unseen_I[together]]
        rows.append({**facts, "protocol": NEW_ONLY, **competition(score_I[unseen_I], score_I[positive], score_I[together])})
    return rows


def competition(score_I: Float[ndarray, " I"], own: np.floating, left_out: Float[ndarray, " R"]) -> dict[str, int]:
    """How many scores are above and equal to `own`, and how many there are, without those of `left_out`, which are among them."""
    above, tied = (int(np.count_nonzero(beats(score_I, own)) - np.count_nonzero(beats(left_out, own))) for beats in _BEATS)
    return {"above": above, "tied": tied, "others": len(score_I) - len(left_out)}


_BEATS = (np.greater, np.equal)


def by_popularity(pool: ItemPool) -> CatalogueScores:
    """Training count, for everybody alike."""

    def score(histories: Histories, pairs: Sequence[HeldOut]) -> Float[ndarray, "N I"]:
        return np.broadcast_to(pool.train_count.astype(np.float32), (len(pairs), len(pool.train_count)))

    return score


def by_history(pool: ItemPool) -> CatalogueScores:
    """How often the user took it before, then training count."""
    popularity_I = (pool.train_count / (1 + pool.train_count.max(initial=0))).astype(np.float32)

    def score(histories: Histories, pairs: Sequence[HeldOut]) -> Float[ndarray, "N I"]:
        out = np.tile(popularity_I, (len(pairs), 1))
        for own, pair in zip(out, pairs, strict=True):
            item, count = np.unique(visible_items(histories, pair), return_counts=True)
            own[item] += count
        return out

    return score


def by_query(pool: ItemPool, query_items: QueryCounts, *, own: bool) -> CatalogueScores:
    """How often an item was taken under the query by anybody in training, then training count; without a query training count.

    own: above all, how often this user took it before, of what was taken under the query.
    """
    popularity_I = pool.train_count / (1 + pool.train_count.max(initial=0))

    def score(histories: Histories, pairs: Sequence[HeldOut]) -> Float[ndarray, "N I"]:
        out = np.tile(popularity_I, (len(pairs), 1))
        for row_I, pair in zip(out, pairs, strict=True):
            query = int(histories.query[int(histories.offsets[pair.row]) + pair.position])
            item, count = query_items.of(query)
            row_I[item] += count
            if own:
                mine, times = np.unique(visible_items(histories, pair), return_counts=True)
                fits = np.isin(mine, item) if query != NONE else np.ones(len(mine), bool)
                row_I[mine[fits]] += times[fits] * _ABOVE_ALL
        return out

    return score


_ABOVE_ALL = 1e9
"""More than any item was taken under one query."""


def by_tower(tower: DualTower, item_Id: Float[ndarray, "I d"] | None = None) -> CatalogueScores:
    """Exact scores of a dual tower."""
    item_Id = item_vectors(tower) if item_Id is None else item_Id

    def score(histories: Histories, pairs: Sequence[HeldOut]) -> Float[ndarray, "N I"]:
        return ask(tower, histories, pairs) @ item_Id.T

    return score


@torch.no_grad()
def ask(tower: DualTower, histories: Histories, pairs: Sequence[HeldOut]) -> Float[ndarray, "N d"]:
    """A user vector for each held-out behaviour, with its query, from the newest behaviours before its request."""
    tower.eval()
    moment, which = np.unique([(pair.row, pair.start) for pair in pairs], axis=0, return_inverse=True)
    length = np.minimum(moment[:, 1], most_read(tower.config))
    batch = collate_windows(histories, histories.offsets[moment[:, 0]] + moment[:, 1] - length, length)
    query = histories.query[[int(histories.offsets[pair.row]) + pair.position for pair in pairs]]
    return user_vectors(tower.users(batch, next_questions(tower, batch, which.reshape(-1), query)))


def next_questions(tower: DualTower, batch: WindowBatch, window_A: Int[ndarray, " A"], query_A: Int[ndarray, " A"]) -> Asked:
    """What comes after each window, asked with each of these queries (-1: none)."""
    window, query = torch.from_numpy(window_A), torch.from_numpy(query_A.astype(np.int64))
    if not tower.config.query:
        query = torch.full_like(query, -1)
    request_B = batch.request_BL.max(1).values + 1
    return Asked(window, request_B[window], query, batch.length_B[window], torch.full_like(batch.item_BL, -1))


def visible_items(histories: Histories, pair: HeldOut) -> Int[ndarray, " L"]:
    """Items of the user before the held-out request."""
    first = int(histories.offsets[pair.row])
    return histories.item[first : first + pair.start]
