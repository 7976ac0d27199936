"""Sampled negatives of training: same category, or beside it, not taken in the request (or by the user), a whole batch at a time.

Only what lies before train_end is left out: a negative may be an item the user takes later, as in any live system, because
leaving those out would tell the model what the held-out part holds. (`seminar/evaluate/negatives.py` is evaluation's.)
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from seminar.schema import NONE
from seminar.sequences import Histories

REJECTION_ROUNDS = 4
"""Draws per negative before its category is searched for what is left."""

OF_THE_PAST = 0.5
"""Share of negatives beside a query that the user took before: what was often taken looks like an answer to anything."""


class Owned:
    """Which items each owner took before train_end: one sorted array of owner x item keys.

    outside "history": an owner is a user. "request": it is a request, named by the flat position of its first behaviour, so
    that what the user took at other times may be a negative and repeats compete with repeats.
    """

    def __init__(self, histories: Histories, num_items: int, outside: Literal["request", "history"] = "history") -> None:
        user_E, position_E = users_and_positions(histories)
        known = position_E < histories.train_end[user_E]
        owner_E = user_E if outside == "history" else request_starts(histories, position_E)
        self._num_items = num_items
        self._keys = np.unique(owner_E[known] * num_items + histories.item[known])

    def contains(self, owner: Int[ndarray, " N"], item: Int[ndarray, " N"]) -> Bool[ndarray, " N"]:
        if not len(self._keys):
            return np.zeros(len(item), bool)
        key = owner * self._num_items + item
        return self._keys[np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)] == key


class NegativeSampler:
    """Items of a given item's category that an owner does not have; items without a category are a category of their own.

    popularity_share: share drawn in proportion to train_count, the rest uniformly.
    """

    def __init__(
        self, category_index: Int[ndarray, " I"], train_count: Int[ndarray, " I"], popularity_share: float = 0.0
    ) -> None:
        self._slot = category_index.astype(np.int64) + 1
        self._member = np.argsort(self._slot, kind="stable")
        self._offsets = np.concatenate([[0], np.cumsum(np.bincount(self._slot))])
        self._mass = np.concatenate([[0], np.cumsum(train_count[self._member])]).astype(np.float64)
        self._popularity_share = popularity_share

    @property
    def num_items(self) -> int:
        return len(self._slot)

    def draw(
        self, like: Int[ndarray, " N"], owner: Int[ndarray, " N"], owned: Owned, rng: np.random.Generator
    ) -> Int[ndarray, " N"]:
        """One item for each of N (item, owner), with replacement; -1 where the owner has the whole category."""
        drawn = np.full(len(like), NONE, np.int64)
        slot = self._slot[like]
        pending = np.arange(len(like))
        for _ in range(REJECTION_ROUNDS):
            item = self._propose(slot[pending], rng)
            free = ~owned.contains(owner[pending], item)
            drawn[pending[free]] = item[free]
            pending = pending[~free]
        for row in pending:
            members = self._member[self._offsets[slot[row]] : self._offsets[slot[row] + 1]]
            left = members[~owned.contains(np.full(len(members), owner[row]), members)]
            if len(left):
                drawn[row] = rng.choice(left)
        return drawn

    def draw_outside(
        self,
        like: Int[ndarray, " N"],
        owner: Int[ndarray, " N"],
        owned: Owned,
        past: tuple[Int[ndarray, " E"], Int[ndarray, " N"], Int[ndarray, " N"]],
        rng: np.random.Generator,
    ) -> Int[ndarray, " N"]:
        """One item of another category for each of N (item, owner), with replacement; -1 where a few draws found none.

        Half are drawn from what a user took before, past = (items, first, end): rows [first, end) of `items` for each; the
        others, and those of users without a past, in proportion to train_count.
        """
        drawn = np.full(len(like), NONE, np.int64)
        taken, first, end = past
        from_past = (rng.random(len(like)) < OF_THE_PAST) & (end > first)
        pending = np.arange(len(like))
        for _ in range(REJECTION_ROUNDS):
            u = rng.random(len(pending))
            place = np.searchsorted(self._mass, u * self._mass[-1], side="right") - 1
            item = self._member[np.minimum(place, len(self._member) - 1)]
            own = from_past[pending]
            low, high = first[pending][own], end[pending][own]
            item[own] = taken[low + (u[own] * (high - low)).astype(np.int64)]
            fits = (self._slot[item] != self._slot[like[pending]]) & ~owned.contains(owner[pending], item)
            drawn[pending[fits]] = item[fits]
            pending = pending[~fits]
        return drawn

    def _propose(self, slot: Int[ndarray, " N"], rng: np.random.Generator) -> Int[ndarray, " N"]:
        low, high = self._offsets[slot], self._offsets[slot + 1]
        u = rng.random(len(slot))
        place = low + (u * (high - low)).astype(np.int64)
        if self._popularity_share:
            below, above = self._mass[low], self._mass[high]
            popular = (rng.random(len(slot)) < self._popularity_share) & (above > below)
            weighted = np.searchsorted(self._mass, below + u * (above - below), side="right") - 1
            place = np.where(popular, np.clip(weighted, low, high - 1), place)
        return self._member[place]


def request_starts(histories: Histories, position_E: Int[ndarray, " E"]) -> Int[ndarray, " E"]:
    """Flat position of the first behaviour of each behaviour's request."""
    begins = begins_request(histories, position_E)
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))


def begins_request(histories: Histories, position_E: Int[ndarray, " E"]) -> Bool[ndarray, " E"]:
    """Whether each behaviour, at this position of its user's history, is the first of its request."""
    return (position_E == 0) | (histories.request != np.concatenate([[NONE], histories.request[:-1]]))


def users_and_positions(histories: Histories) -> tuple[Int[ndarray, " E"], Int[ndarray, " E"]]:
    """User row of every behaviour, and its position inside that user's history."""
    user = np.repeat(np.arange(len(histories)), histories.lengths)
    return user, np.arange(len(user)) - histories.offsets[user]
