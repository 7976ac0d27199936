"""How sure a figure is: percentile bootstrap over users and, for several training runs, over seeds.

A user's lists are not independent, so users are resampled whole: a statistic maps weights (how often each user was drawn) to
values. All statistics see the same draws, so the interval of a difference of two scorers is a paired one.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

REPLICATES = 1000
CONFIDENCE = 0.95
_BLOCK_CELLS = 1 << 22

Statistic = Callable[[Float[ndarray, "R U"]], Float[ndarray, "R Q"]]


def replicate(
    statistics: list[Statistic], num_users: int, generator: np.random.Generator, replicates: int = REPLICATES
) -> list[Float[ndarray, "R Q"]]:
    """Values of every statistic over `num_users` users drawn with replacement, `replicates` times (Efron 1979)."""
    block = max(1, min(replicates, _BLOCK_CELLS // max(num_users, 1)))
    values: list[list[ndarray]] = [[] for _ in statistics]
    for first in range(0, replicates, block):
        size = min(block, replicates - first)
        weight_RU = draw_users(num_users, size, generator).astype(np.float64)
        for kept, statistic in zip(values, statistics, strict=True):
            kept.append(statistic(weight_RU))
    return [np.concatenate(kept) for kept in values]


def draw_users(num_users: int, draws: int, generator: np.random.Generator) -> Int[ndarray, "R U"]:
    """How often each of `num_users` users was drawn in each of `draws` samples with replacement; rows sum to `num_users`."""
    drawn = generator.integers(0, num_users, (draws, num_users)) + np.arange(draws)[:, None] * num_users
    return np.bincount(drawn.ravel(), minlength=draws * num_users).reshape(draws, num_users)


def run_shares(runs: int, replicates: int, generator: np.random.Generator) -> Float[ndarray, "R S"]:
    """Weights of S runs (training seeds) in each replicate, the runs drawn with replacement like the users; rows sum to 1.

    The spread of replicates mixed so covers users and seeds. Of S runs it shows (S - 1) / S of the seeds' variance, as every
    bootstrap of S values does: with three seeds the seeds' part of an interval is 18 % too short.
    """
    return generator.multinomial(runs, np.full(runs, 1 / runs), replicates) / runs


def interval(value_RQ: Float[ndarray, "R Q"], confidence: float = CONFIDENCE) -> Float[ndarray, "2 Q"]:
    """Lower and upper ends of the percentile interval; replicates without a value (NaN: nobody of a slice drawn) are left out."""
    missing = np.isnan(value_RQ)
    whole, some = ~missing.any(0), missing.any(0) & ~missing.all(0)
    ends = np.full((2, value_RQ.shape[1]), np.nan)
    tail = (1 - confidence) / 2
    # nanquantile goes column by column: 20 times slower.
    ends[:, whole] = np.quantile(value_RQ[:, whole], [tail, 1 - tail], axis=0)
    ends[:, some] = np.nanquantile(value_RQ[:, some], [tail, 1 - tail], axis=0)
    return ends


def ratio_of_totals(total_UQ: Float[ndarray, "U Q"], weight_UQ: Float[ndarray, "U Q"]) -> Statistic:
    """Sum over users of `total` divided by that of `weight`: the mean where `weight` counts rows."""

    def value(weight_RU: ndarray) -> ndarray:
        top, bottom = weight_RU @ total_UQ, weight_RU @ weight_UQ
        return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)

    return value
