"""Counts of a history by item and by category, decayed by age, made once a history and read by every request after.

A sum of exp(-age / tau) at a later moment is the sum at the newest behaviour times one power of the time between.
"""

from typing import no_type_check

import numba
import numpy as np

MS_PER_HOUR = 3_600_000.0

# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def sum_groups(group, time_ms, now_ms, taus, total, latest):
    """total [G, 1 + tau]: behaviours of each group >= 0, plain and decayed to now; latest [G]: time of the newest."""
    for n in range(len(group)):
        g = group[n]
        if g >= 0:
            hours = (now_ms - time_ms[n]) / MS_PER_HOUR
            total[g, 0] += 1
            for k in range(len(taus)):
                total[g, 1 + k] += np.exp(-hours / taus[k])
            latest[g] = max(latest[g], time_ms[n])


@numba.njit(nogil=True, cache=True)
@no_type_check
def cross_rows(item, category, items, item_total, item_latest, categories, category_total, decay, now_ms, out):
    """`features.cross_features` of each target into out [T, F]; items, categories: sorted ids that the totals are of.

    decay: factor of each total between the newest behaviour and now.
    """
    width = len(decay)
    mine, related = np.empty(width, np.float32), np.empty(width, np.float32)
    for t in range(len(item)):
        i, c = _find(items, item[t]), _find(categories, category[t])
        for k in range(width):
            mine[k] = item_total[i, k] * decay[k] if i >= 0 else 0.0
            related[k] = category_total[c, k] * decay[k] if c >= 0 and category[t] >= 0 else 0.0
            out[t, k] = np.log1p(mine[k])
            out[t, width + k] = np.log1p(related[k])
            out[t, 2 * width + 2 + k] = mine[k] / max(max(mine[k], related[k]), np.float32(1e-9))
        out[t, 2 * width] = mine[0] > 0
        hours = np.float32((now_ms - item_latest[i]) / MS_PER_HOUR) if i >= 0 else np.float32(np.inf)
        out[t, 2 * width + 1] = 1 / (1 + hours / 24)


@numba.njit(nogil=True)
@no_type_check
def _find(ids, wanted):
    """Place of an id among sorted ones, -1 if it is not there."""
    place = np.searchsorted(ids, wanted)
    return place if place < len(ids) and ids[place] == wanted else -1


@numba.njit(nogil=True, cache=True)
@no_type_check
def trend_rows(item, week, start, entry_week, entry_sum, taus, scale, out):
    """`trend.trend_features` of each target: entries start[i] .. start[i + 1] are item i's weeks, ascending."""
    for t in range(len(item)):
        low, high = start[item[t]], start[item[t] + 1]
        first = low
        while low < high:
            middle = (low + high) >> 1
            if entry_week[middle] < week:
                low = middle + 1
            else:
                high = middle
        found, past = low > first, week - entry_week[max(low - 1, 0)]
        for k in range(out.shape[1]):
            decay = np.float32(np.exp(-past / taus[k])) if k < len(taus) else np.float32(1)
            out[t, k] = np.log1p(entry_sum[low - 1, k] * decay) / scale if found else 0.0
