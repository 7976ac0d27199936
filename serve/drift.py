"""Do scores still look as they did? A histogram of the newest scores of each task against one of the past.

PSI, the population stability index: `sum_b (p_b - q_b) ln(p_b / q_b)` over ten or so groups of bins that hold equal shares of the
past. Its usual reading: under .1 nothing, over .25 a shift. The reference is the first window of scores after a bundle is taken,
so it asks whether the traffic changed under one model; a second one, the last window of the bundle before, asks what a swap
changed. A window slides in ten steps. Its scores must come from many users: 100 targets of one user are hardly more than one
observation.
"""

from collections import deque

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

BINS = 160
"""Bins of the log-odds from -8 to 8: a tenth each."""
LIMIT = 8.0
GROUPS = 10
BLOCKS = 10
"""Steps in which the window slides."""
QUANTILES = (0.1, 0.5, 0.9)


class ScoreDrift:
    """Scores of one task since a bundle was taken. window: scores compared. before: counts of the bundle before it."""

    def __init__(self, window: int, before: Int[ndarray, " bins"] | None = None) -> None:
        self._block = max(window // BLOCKS, 1)
        self._blocks: deque[Int[ndarray, " bins"]] = deque(maxlen=BLOCKS)
        self._open, self._reference = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self._referred = 0
        self.before = before

    def add(self, probability_N: Float[ndarray, " N"]) -> None:
        """Count scores, oldest first."""
        bin_N = _bins(probability_N)
        for start in range(0, len(bin_N), self._block):
            self._add(bin_N[start : start + self._block])

    def _add(self, bin_N: Int[ndarray, " N"]) -> None:
        self._open += np.bincount(bin_N, minlength=BINS)
        if self._open.sum() >= self._block:
            self._blocks.append(self._open)
            if self._referred < BLOCKS:
                self._referred += 1
                self._reference += self._open
            self._open = np.zeros(BINS, np.int64)

    @property
    def newest(self) -> Int[ndarray, " bins"] | None:
        """Counts of the newest window; None before one is full."""
        return sum(self._blocks, np.zeros(BINS, np.int64)) if len(self._blocks) == BLOCKS else None

    def psi(self) -> dict[str, float]:
        """PSI against `start` and, where there was a bundle before, `before`; empty until a window is full."""
        newest = self.newest
        if newest is None:
            return {}
        against = {"start": self._reference} | ({} if self.before is None else {"before": self.before})
        return {name: psi(reference, newest) for name, reference in against.items()}

    def quantiles(self) -> dict[str, float]:
        """Quantiles of what is known of the newest window, to a tenth in log-odds; empty before any score."""
        counts = sum(self._blocks, self._open)
        total = counts.sum()
        if not total:
            return {}
        upto = np.cumsum(counts) / total
        middle = (np.arange(BINS) + 0.5) * (2 * LIMIT / BINS) - LIMIT
        return {str(q): float(1 / (1 + np.exp(-middle[int(np.searchsorted(upto, q))]))) for q in QUANTILES}


def psi(past: Int[ndarray, " bins"], present: Int[ndarray, " bins"]) -> float:
    """PSI of two counts over groups with equal shares of the past; half a score is added to each group, so none is empty."""
    upto = np.cumsum(past) / past.sum()
    cuts = np.unique(np.searchsorted(upto, np.linspace(0, 1, GROUPS + 1)[1:-1])) + 1
    starts = np.unique(np.concatenate([[0], cuts[cuts < BINS]]))
    p, q = (np.add.reduceat(counts, starts) + 0.5 for counts in (present, past))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def _bins(probability_N: Float[ndarray, " N"]) -> Int[ndarray, " N"]:
    p = np.clip(probability_N.astype(np.float64), 1e-9, 1 - 1e-9)
    log_odds = np.log(p) - np.log1p(-p)
    return np.clip(((log_odds + LIMIT) * (BINS / (2 * LIMIT))).astype(np.int64), 0, BINS - 1)
