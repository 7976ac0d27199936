"""Negatives: distinct items outside an exclusion, drawn in time that does not grow with the catalogue.

Proposals are drawn and refused until enough are found; only where most proposals would be refused is the exact set built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

from seminar.config import EvaluateConfig
from seminar.schema import NONE

_ROUNDS = 8


@dataclass(frozen=True)
class ItemPool:
    """What negatives are drawn from: category row (-1: none) and behaviours in training of every item of the catalogue."""

    category_index: Int[ndarray, " I"]
    train_count: Int[ndarray, " I"]

    @classmethod
    def of(cls, catalogue: pa.Table) -> "ItemPool":
        """From the items table of a `pairs` artefact (CATALOGUE_ITEMS)."""
        return cls(catalogue["category_index"].to_numpy(), catalogue["train_count"].to_numpy())

    @property
    def num_items(self) -> int:
        return len(self.category_index)

    @cached_property
    def all_items(self) -> Int[ndarray, " I"]:
        return np.arange(self.num_items)

    @cached_property
    def cumulative_count(self) -> Int[ndarray, " I"]:
        return np.cumsum(self.train_count, dtype=np.int64)

    def of_category(self, category: int) -> Int[ndarray, " C"]:
        """Items of one category, ascending; none for category -1, which is the lack of one."""
        if category == NONE:
            return np.empty(0, np.int64)
        return self._by_category[self._category_ends[category] : self._category_ends[category + 1]]

    @cached_property
    def _by_category(self) -> ndarray:
        return np.argsort(self.category_index, kind="stable")

    @cached_property
    def _category_ends(self) -> ndarray:
        categories = np.arange(self.category_index.max(initial=NONE) + 2)
        return np.searchsorted(self.category_index[self._by_category], categories)


def draw_negatives(
    pool: ItemPool, config: EvaluateConfig, positive: int, excluded: Int[ndarray, " X"], rng: np.random.Generator
) -> Int[ndarray, " N"]:
    """Up to `num_negatives` distinct items outside `excluded` (ascending). Popularity: weighted sampling without replacement."""
    count = config.num_negatives
    if config.negatives == "same_category":
        members = pool.of_category(int(pool.category_index[positive]))
        return _draw(lambda n: members[rng.integers(len(members), size=n)], members, None, excluded, count, rng)
    if config.negatives == "uniform":
        return _draw(lambda n: rng.integers(pool.num_items, size=n), pool.all_items, None, excluded, count, rng)
    ends = pool.cumulative_count
    if not len(ends) or not ends[-1]:
        return np.empty(0, np.int64)
    return _draw(
        lambda n: np.searchsorted(ends, rng.integers(ends[-1], size=n), side="right"),
        pool.all_items,
        pool.train_count,
        excluded,
        count,
        rng,
    )


def _draw(
    propose: Callable[[int], ndarray],
    members: ndarray,
    weight_I: ndarray | None,
    excluded: ndarray,
    count: int,
    rng: np.random.Generator,
) -> ndarray:
    """First distinct proposals outside `excluded`, which is successive sampling without replacement; else from the exact set."""
    found = np.empty(0, np.int64)
    for _ in range(_ROUNDS if len(members) > 16 * count else 0):
        drawn = propose(2 * count)
        found = np.concatenate([found, drawn[~np.isin(drawn, excluded)]])
        found = found[np.sort(np.unique(found, return_index=True)[1])]
        if len(found) >= count:
            return found[:count]
    allowed = np.setdiff1d(members, excluded, assume_unique=True)
    weight = None if weight_I is None else weight_I[allowed].astype(np.float64)
    possible = len(allowed) if weight is None else int(np.count_nonzero(weight))
    if not possible:
        return np.empty(0, np.int64)
    chance = None if weight is None else weight / weight.sum()
    return rng.choice(allowed, min(count, possible), replace=False, p=chance).astype(np.int64)
