"""Popularity as of the moment of the request: how often an item was taken in the weeks before, recent weeks counting more.

Only weeks that ended before the request's own week began are counted. The request's positives are never among them, so nothing
need be left out in training, and a score of the past does not see what came later.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy import ndarray
from torch import Tensor

TAU_WEEKS = (1.0, 4.0)
"""A behaviour of w weeks ago counts exp(-w / tau); the last feature counts all alike."""
NUM_TREND = len(TAU_WEEKS) + 1
_STRIDE = 1 << 32
"""A key is item * 2**32 + week, which ascends because an item's weeks do."""
SCALE = 4
"""What log counts are divided by."""


def decayed_counts(
    offsets: Int[ndarray, " I1"], week: Int[ndarray, " W"], count: Int[ndarray, " W"]
) -> tuple[Int[Tensor, " E"], Float[Tensor, "E F"]]:
    """Keys of all (item, week) with a count, and as of each the item's counts up to it, decayed: F = NUM_TREND; E = W + 1.

    As of any later week the same sums are those of the last week with a count, times one power: a look-up, whatever the number of
    weeks. The first key is below all others and its sums are 0.
    """
    item = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    key = np.append(-_STRIDE, item * _STRIDE + week)
    rate = np.array([*(1 / tau for tau in TAU_WEEKS), 0.0])
    sums = _accumulate(offsets, week.astype(np.int64), count.astype(np.float64), rate)
    return torch.from_numpy(key), torch.from_numpy(sums.astype(np.float32))


def weeks_of_items(week_key_E: Int[ndarray, " E"], num_items: int) -> tuple[Int64[ndarray, " I1"], Int64[ndarray, " E"]]:
    """Where each item's entries begin among those of `decayed_counts` (and, last, where they end), and the week of each entry."""
    start = np.searchsorted(week_key_E, np.arange(num_items + 1) * _STRIDE)
    return start.astype(np.int64), (week_key_E & (_STRIDE - 1)).astype(np.int64)


@torch.no_grad()
def trend_features(
    week_key_E: Int[Tensor, " E"], week_sum_EF: Float[Tensor, "E F"], item_BT: Int[Tensor, "B T"], week_B: Int[Tensor, " B"]
) -> Float[Tensor, "B T F"]:
    """log1p of sum over weeks w < week_B of count_w exp(-(week_B - w) / tau), for each tau and undecayed, scaled to about 1."""
    wanted_BT = item_BT * _STRIDE + week_B[:, None]
    place_BT = torch.searchsorted(week_key_E, wanted_BT) - 1
    past_BT = wanted_BT - week_key_E[place_BT]
    # What was found belongs to an earlier item if it lies longer ago than any real week.
    found_BT = (past_BT < _STRIDE // 2).to(week_sum_EF.dtype)
    decay_BTF = torch.stack([*(torch.exp(past_BT / -tau) for tau in TAU_WEEKS), found_BT], -1)
    return (week_sum_EF[place_BT] * decay_BTF).log1p() / SCALE


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def _accumulate(offsets, week, count, rate):
    """Row 1 + e: counts of the item of entry e in the weeks up to its own, decayed to it; row 0 is 0."""
    sums = np.zeros((len(week) + 1, len(rate)))
    for i in range(len(offsets) - 1):
        for e in range(offsets[i], offsets[i + 1]):
            for f in range(len(rate)):
                before = sums[e, f] * np.exp(-rate[f] * (week[e] - week[e - 1])) if e > offsets[i] else 0.0
                sums[1 + e, f] = before + count[e]
    return sums
