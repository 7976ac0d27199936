"""Is a difference more than chance? Sign-flip test over users, Holm's correction, and pooled AUC under user weights.

A user's lists are not independent, so the unit that is flipped or drawn is a user. Figures that are no sum over users, such as
AUC over the rows of all users together, have no sign-flip test; their bootstrap needs AUC under many user weights at once.
"""

from collections.abc import Iterator
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float, Int, Num, UInt8
from numpy import ndarray

from seminar.evaluate.intervals import Statistic

FLIPS = 10_000
_BLOCK_CELLS = 1 << 22
_TOLERANCE = 1e-9
"""Sums this close (relative to the sum of absolute differences) count as equal, so that rounding never breaks a tie."""


def sign_flip_p(difference_UQ: Float[ndarray, "U Q"], generator: np.random.Generator, flips: int = FLIPS) -> Float[ndarray, " Q"]:
    """Two-sided p of each column: how often random signs of the users' differences give a sum at least as far from 0.

    Under the null hypothesis the two models are exchangeable for every user (Fisher 1935). All 2^U signs where these are at most
    `flips`; else p = (1 + extreme) / (1 + flips), which is never 0 and never too small (Phipson and Smyth 2010).
    """
    users = len(difference_UQ)
    observed_Q = difference_UQ.sum(0)
    bar_Q = np.abs(observed_Q) - _TOLERANCE * np.abs(difference_UQ).sum(0)
    exact = users < flips.bit_length()
    extreme_Q = np.zeros(difference_UQ.shape[1])
    for flipped_FU in _all_signs(users) if exact else _drawn_signs(users, flips, generator):
        total_FQ = observed_Q - 2 * (flipped_FU.astype(np.float64) @ difference_UQ)
        extreme_Q += (np.abs(total_FQ) >= bar_Q).sum(0)
    return extreme_Q / 2.0**users if exact else (1 + extreme_Q) / (1 + flips)


def holm(p_N: Float[ndarray, " N"]) -> Float[ndarray, " N"]:
    """p values that bound the chance of any false finding among the N (Holm 1979); NaN is no test and stays NaN."""
    known = np.flatnonzero(~np.isnan(p_N))
    order = known[np.argsort(p_N[known], kind="stable")]
    steps = len(order) - np.arange(len(order))
    adjusted = np.full(len(p_N), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps * p_N[order]), 1)
    return adjusted


def pooled_auc(
    score_N: Float[ndarray, " N"], label_N: Num[ndarray, " N"], user_N: Int[ndarray, " N"], num_users: int
) -> Statistic:
    """AUC over all rows (ties half) as a function of user weights; 1,000 replicates of 50,000 rows: 0.08 s on one core."""
    order = np.argsort(score_N, kind="stable")
    new = np.flatnonzero(np.diff(score_N[order]) > 0) + 1
    level = np.concatenate([[0], new, [len(order)]]).astype(np.int64)
    positive, user = label_N[order] > 0, user_N[order].astype(np.int64)
    positives_U, negatives_U = (np.bincount(user[own], minlength=num_users).astype(np.float64) for own in (positive, ~positive))

    def value(weight_RU: ndarray) -> ndarray:
        wins_R = np.zeros(len(weight_RU))
        _count_wins(level, positive, user, np.ascontiguousarray(weight_RU.T), wins_R)
        pairs_R = (weight_RU @ positives_U) * (weight_RU @ negatives_U)
        return np.divide(wins_R, pairs_R, out=np.full(len(wins_R), np.nan), where=pairs_R > 0)[:, None]

    return value


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.
@numba.njit(nogil=True, cache=True)
@no_type_check
def _count_wins(level, positive, user, weight_UR, wins_R):
    """Add the weight of (positive, lower negative) pairs, ties half, to wins_R; rows ascend, level: where each score starts."""
    below_R = np.zeros(len(wins_R))
    for block in range(len(level) - 1):
        first, last = level[block], level[block + 1]
        for half in range(2):
            for i in range(first, last):
                if not positive[i]:
                    for r in range(len(wins_R)):
                        below_R[r] += 0.5 * weight_UR[user[i], r]
            if half == 0:
                for i in range(first, last):
                    if positive[i]:
                        for r in range(len(wins_R)):
                            wins_R[r] += weight_UR[user[i], r] * below_R[r]


def _all_signs(users: int) -> Iterator[UInt8[ndarray, "F U"]]:
    yield (np.arange(2**users)[:, None] >> np.arange(users) & 1).astype(np.uint8)


def _drawn_signs(users: int, flips: int, generator: np.random.Generator) -> Iterator[UInt8[ndarray, "F U"]]:
    block = max(1, _BLOCK_CELLS // users)
    for first in range(0, flips, block):
        size = min(block, flips - first)
        drawn = np.frombuffer(generator.bytes(-(-size * users // 8)), np.uint8)
        yield np.unpackbits(drawn, count=size * users).reshape(size, users)
