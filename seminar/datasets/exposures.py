"""Label-0 rows of The Complete Journey: products promoted in a basket's store and week that were not bought in it.

Draws are a hash of basket and draw number, so a basket's sample depends on nothing else in the log. All baskets of a week are
sampled together: (2k + 8) x baskets numbers for k exposures a basket.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from seminar.hashing import mix64


@dataclass(frozen=True)
class Promotions:
    """Distinct (store, product) pairs on promotion in one week, as sorted keys store x 2^32 + product."""

    key_P: Int[ndarray, " P"]

    @classmethod
    def of(cls, store: Int[ndarray, " R"], product: Int[ndarray, " R"]) -> "Promotions":
        """From rows that may repeat; ids must be in [0, 2^31)."""
        return cls(_sorted_unique(_key(store, product)))

    def contain(self, store: Int[ndarray, " N"], product: Int[ndarray, " N"]) -> Bool[ndarray, " N"]:
        """True for pairs that are on promotion."""
        return _among(_key(store, product), self.key_P)

    def of_store(self, store: Int[ndarray, " B"]) -> tuple[Int[ndarray, " B"], Int[ndarray, " B"]]:
        """Start and number of each store's pairs in `key_P`."""
        start = np.searchsorted(self.key_P, store << 32)
        return start, np.searchsorted(self.key_P, (store + 1) << 32) - start


def sample_exposures(
    *,
    basket_N: Int[ndarray, " N"],
    store_N: Int[ndarray, " N"],
    product_N: Int[ndarray, " N"],
    eligible_N: Bool[ndarray, " N"],
    promotions: Promotions,
    per_basket: int,
) -> tuple[Int[ndarray, " X"], Int[ndarray, " X"]]:
    """Up to `per_basket` promoted products for every basket that has an eligible row, none of them in any row of the basket.

    Returns, by basket and then draw, the row that stands for the basket and the product. Uniform without replacement where a
    store promotes at most 2k + 8 products; else by rejection, which falls short of k only if repeats use up the k + 8 spares.
    """
    first_B, inverse_N = _first_rows(basket_N, eligible_N)
    if not per_basket or not len(first_B) or not len(promotions.key_P):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    draws = 2 * per_basket + 8
    start_B, count_B = promotions.of_store(store_N[first_B])
    random_BD = mix64(mix64(basket_N[first_B].astype(np.uint64))[:, None] ^ np.arange(draws, dtype=np.uint64))
    step_D = np.arange(draws)
    few_B1 = (count_B <= draws)[:, None]
    pick_BD = np.where(few_B1, step_D, (random_BD % np.maximum(count_B, 1).astype(np.uint64)[:, None]).astype(np.int64))
    valid_BD = pick_BD < count_B[:, None]
    # A store with few promotions enumerates them and takes them in random order; the others take draws as they come.
    order_BD = np.argsort(np.where(few_B1, random_BD, step_D.astype(np.uint64)), axis=1, kind="stable")
    pick_BD, valid_BD = np.take_along_axis(pick_BD, order_BD, 1), np.take_along_axis(valid_BD, order_BD, 1)
    key_BD = promotions.key_P[np.where(valid_BD, start_B[:, None] + pick_BD, 0)]
    product_BD = key_BD & 0xFFFFFFFF
    basket_BD = np.broadcast_to(np.arange(len(first_B))[:, None], product_BD.shape)
    candidate = _key(basket_BD, product_BD)
    has_basket = inverse_N >= 0
    valid_BD &= ~_among(candidate, np.sort(_key(inverse_N[has_basket], product_N[has_basket])))
    valid_BD &= _first_of_equal(np.where(valid_BD, candidate, -1))
    taken_BD = valid_BD & (np.cumsum(valid_BD, axis=1) <= per_basket)
    return first_B[basket_BD[taken_BD]], product_BD[taken_BD]


def _key(high: Int[ndarray, "..."], low: Int[ndarray, "..."]) -> Int[ndarray, "..."]:
    return (high.astype(np.int64) << 32) | low


def _sorted_unique(values: Int[ndarray, " R"]) -> Int[ndarray, " U"]:
    # numpy's own `unique` hashes, which takes ten times as long on a week of promotions.
    values = np.sort(values)
    return values[np.diff(values, prepend=-1) != 0]


def _among(values: Int[ndarray, "..."], sorted_U: Int[ndarray, " U"]) -> Bool[ndarray, "..."]:
    if not len(sorted_U):
        return np.zeros(values.shape, bool)
    at = np.minimum(np.searchsorted(sorted_U, values), len(sorted_U) - 1)
    return sorted_U[at] == values


def _first_rows(basket_N: ndarray, eligible_N: ndarray) -> tuple[ndarray, ndarray]:
    """First eligible row of each basket that has one, in row order, and each row's position in that list (or -1)."""
    ids, of_row_N = np.unique(basket_N, return_inverse=True)
    first_U = np.full(len(ids), len(basket_N))
    np.minimum.at(first_U, of_row_N[eligible_N], np.flatnonzero(eligible_N))
    order = np.argsort(first_U, kind="stable")[: int((first_U < len(basket_N)).sum())]
    position_U = np.full(len(ids), -1)
    position_U[order] = np.arange(len(order))
    return first_U[order], position_U[of_row_N]


def _first_of_equal(values_BD: ndarray) -> ndarray:
    _, first = np.unique(values_BD, return_index=True)
    out = np.zeros(values_BD.size, bool)
    out[first] = True
    return out.reshape(values_BD.shape)
