"""What is ranked: held-out pairs, their candidates, logged impressions, and the floors that every model must clear.

Held-out pairs come from requests after the split positions that `prepare` decided. What is drawn depends on (seed, user) only,
never on shards or workers. A candidate always carries the positive's query: with queries of their own, the query alone tells
positive from negative. A request without negatives is counted under a reason, not scored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from seminar.batching import Batch, Request
from seminar.config import EvaluateConfig
from seminar.evaluate.negatives import ItemPool, draw_negatives
from seminar.hashing import mix64, stable_hash
from seminar.schema import CTR, NONE, PSR
from seminar.sequences import Histories

ScoreFn = Callable[[Batch], Tensor]
"""Batch -> one score a target, [B, T]; a model's score is the logit of the target's task. Padding targets may be anything."""

_PAIR, _NEGATIVES, _SAMPLE = range(3)


@dataclass(frozen=True)
class HeldOut:
    """A held-out pair: user row and hash, position in the history, where its request starts (= visible behaviours) and ends."""

    row: int
    user: int
    position: int
    start: int
    end: int


def held_out_pairs(histories: Histories, config: EvaluateConfig, rows: Int[ndarray, " R"] | None = None) -> list[HeldOut]:
    """Held-out pairs of the split, of all users or those in `rows`: one a user, drawn by (seed, user), or all of them."""
    users = stable_hash(histories.user_id)
    pairs = []
    for row in range(len(histories)) if rows is None else rows.tolist():
        starts = histories.request_starts(row)
        train_end, val_end = histories.train_end[row], histories.val_end[row]
        first, last = (val_end, starts[-1]) if config.split == "test" else (train_end, val_end)
        positions = np.arange(first, last)
        if config.one_per_user and len(positions):
            positions = _generator(config.seed, int(users[row]), _PAIR).choice(positions, 1)
        request = np.searchsorted(starts, positions, side="right")
        pairs += [
            HeldOut(row, int(users[row]), int(p), int(starts[r - 1]), int(starts[r]))
            for p, r in zip(positions, request, strict=True)
        ]
    return pairs


def ranking_request(histories: Histories, pool: ItemPool, held: HeldOut, config: EvaluateConfig) -> tuple[Request, int] | None:
    """The positive among its sampled negatives, at a random place, and that place; None if no negative exists.

    Negatives are distinct items outside `config.exclude`: the user's whole history, past and future, or the held-out request.
    `uniform` over the catalogue, `popularity` by training count, `same_category` as the positive: all of them where the category
    holds fewer than `num_negatives`.
    """
    span = histories.span(held.row)
    position = span.start + held.position
    rng = _generator(config.seed, held.user, _NEGATIVES, held.position)
    whole = slice(span.start + held.start, span.start + held.end) if config.exclude == "request" else span
    negatives = draw_negatives(pool, config, int(histories.item[position]), np.unique(histories.item[whole]), rng)
    if not len(negatives):
        return None
    place = int(rng.integers(len(negatives) + 1))
    return _candidates(histories, held, np.insert(negatives, place, histories.item[position]), place), place


def full_ranking_request(histories: Histories, held: HeldOut, items: Int[ndarray, " T"], place: int | None) -> Request:
    """Any items as candidates, the positive at `place` if it is among them. Items of the history are not removed."""
    return _candidates(histories, held, items, place)


def impressions_request(histories: Histories, held: HeldOut) -> Request:
    """All logged rows of the pair's request: taken (label 1) and shown but not taken (label 0), each with its own query.

    Repeats of a (query, item) count once; taken beats shown, as logs repeat candidates with conflicting labels.
    """
    span, shown = histories.span(held.row), histories.exposures.span(held.row)
    taken = slice(span.start + held.start, span.start + held.end)
    same = histories.exposures.request[shown] == histories.request[taken.start]
    item = np.concatenate([histories.item[taken], histories.exposures.item[shown][same]]).astype(np.int64)
    query = np.concatenate([histories.query[taken], histories.exposures.query[shown][same]]).astype(np.int64)
    _, first = np.unique(np.stack([query, item]), axis=1, return_index=True)
    label = (first < taken.stop - taken.start).astype(np.float32)
    return _request(histories, held, item[first], query[first], label)


def in_user_sample(histories: Histories, seed: int, share: float) -> Bool[ndarray, " N"]:
    """Which users belong to a sample of about `share` of all users; a user's answer depends on (seed, user) alone."""
    salt = mix64(np.array([seed, _SAMPLE], np.uint64))
    mixed = mix64(stable_hash(histories.user_id) ^ salt[0] ^ salt[1])
    return mixed.astype(np.float64) < share * 2.0**64


POPULARITY, IN_HISTORY = "popularity", "in-history, then popularity"
FLOORS = (POPULARITY, IN_HISTORY)


def floors(pool: ItemPool) -> dict[str, ScoreFn]:
    """Scorers without a model: training count; and any item of the visible history above any other, then training count."""
    count = torch.from_numpy(np.append(pool.train_count, 0).astype(np.float64))
    popularity = count / (1 + count.max())

    def by_popularity(batch: Batch) -> Tensor:
        return popularity[batch.item_BT]

    def by_history(batch: Batch) -> Tensor:
        history = torch.where(batch.mask_BL, batch.item_BL, NONE)
        found = [torch.isin(target, seen) for target, seen in zip(batch.item_BT, history, strict=True)]
        return popularity[batch.item_BT] + torch.stack(found)

    return {POPULARITY: by_popularity, IN_HISTORY: by_history}


def _candidates(histories: Histories, held: HeldOut, item_T: ndarray, place: int | None) -> Request:
    query = histories.query[histories.offsets[held.row] + held.position]
    label = np.zeros(len(item_T), np.float32)
    if place is not None:
        label[place] = 1
    return _request(histories, held, item_T.astype(np.int64), np.full(len(item_T), query, np.int64), label)


def _request(histories: Histories, held: HeldOut, item_T: ndarray, query_T: ndarray, label_T: ndarray) -> Request:
    time_ms = int(histories.time_ms[histories.offsets[held.row] + held.start])
    return Request(held.row, held.start, time_ms, item_T, query_T, label_T, np.where(query_T == NONE, CTR, PSR))


def _generator(seed: int, user: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, user, *purpose])
