"""Fitting the codebooks of all channels: ~1.5 s of one core per 65k vectors; the loop runs in one process or over a cluster.

A channel never gets more centroids than it has distinct vectors; with that few, each is its own centroid and codes are lossless.
With fewer than 39 points a centroid the count is *not* cut: on held-out vectors 256 centroids fitted to 300 points lose a quarter
of what 300 / 39 = 7 lose (.12 against .51 Gaussian, .06 against .38 clustered). The report says `undertrained` instead.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from numpy import ndarray

from seminar.codes.codebook import Codebooks, Stamp
from seminar.codes.kmeans import MAX_POINTS, Gather, lloyd, split_spaces, statistics
from seminar.config import CodebookConfig
from seminar.errors import ConfigError, DataError, VersionMismatch, explain
from seminar.hashing import mix64
from seminar.schema import CHANNELS

POINTS_PER_CENTROID = 39
"""Below this a codebook counts as undertrained (a rule of thumb of the PQ literature, also faiss's)."""


@dataclass(frozen=True)
class ChannelReport:
    """How well one channel was fitted. distortion: mean squared error of its training vectors (unit norm), in [0, 4].

    dead: centroids no training vector uses, duplicates: centroids equal to an earlier one; both of num_centroids * S.
    """

    points: int
    distinct: int
    num_centroids: int
    distortion: float
    dead: int
    duplicates: int
    lossless: bool
    undertrained: bool


Spread = Callable[[Float32[ndarray, "N S w"], int], Gather]
"""Places one channel's points as so many shards and returns how to gather their statistics."""


def in_process(point_NSw: Float32[ndarray, "N S w"], num_shards: int) -> Gather:
    """Shards in this process; the Ray job spreads them over a cluster with the same functions."""
    shards = np.array_split(point_NSw, num_shards)
    return lambda centroid_SCw: [statistics(shard, centroid_SCw) for shard in shards]


def fit(
    vector_M: Sequence[Float[ndarray, "_ d"]],
    config: CodebookConfig,
    stamp: Stamp,
    warm: Codebooks | None = None,
    spread: Spread = in_process,
) -> tuple[Codebooks, list[ChannelReport]]:
    """Codebooks of all channels from their present unit vectors (any number, also none), bitwise equal for any num_shards.

    warm: start from these centroids, so that most codes stay as they are. Raises DataError for vectors that are not unit vectors,
    ConfigError where the sub-spaces do not fit, VersionMismatch where `warm` has another shape.
    """
    dim = vector_M[0].shape[1]
    if dim % config.num_subquantizers:
        what = f"num_subquantizers ({config.num_subquantizers})"
        raise ConfigError(explain(what, got=f"dim {dim}", expected="a multiple of it", fix="choose a divisor of dim"))
    shape = (config.num_subquantizers, dim // config.num_subquantizers)
    if warm is not None and (warm.num_subquantizers, warm.dim) != (shape[0], dim):
        got = f"{warm.num_subquantizers} sub-spaces of dim {warm.dim}"
        raise VersionMismatch(explain(f"warm start from {warm.stamp}", got=got, expected=f"{shape[0]} of {dim}", fix="fit cold"))

    def fit_one(channel: int) -> tuple[ndarray, ChannelReport]:
        unit_Nd = _checked(vector_M[channel], CHANNELS[channel])
        start = warm.used(channel) if warm is not None else np.empty((shape[0], 0, shape[1]), np.float32)
        return _fit_channel(unit_Nd, config, np.random.default_rng([config.seed, channel]), start, spread)

    with ThreadPoolExecutor(len(vector_M)) as pool:
        fitted = list(pool.map(fit_one, range(len(vector_M))))
    centroid_MSCw = np.zeros((len(fitted), shape[0], config.num_centroids, shape[1]), np.float32)
    for channel, (centroid_SCw, _) in enumerate(fitted):
        centroid_MSCw[channel, :, : centroid_SCw.shape[1]] = centroid_SCw
    counts = np.array([centroid.shape[1] for centroid, _ in fitted])
    return Codebooks(centroid_MSCw, counts, stamp), [report for _, report in fitted]


def _fit_channel(
    unit_Nd: ndarray, config: CodebookConfig, generator: np.random.Generator, start_SCw: ndarray, spread: Spread
) -> tuple[ndarray, ChannelReport]:
    distinct = _distinct(unit_Nd)
    count = min(config.num_centroids, len(distinct))
    if not count:
        return start_SCw[:, :0], ChannelReport(0, 0, 0, 0.0, 0, 0, lossless=True, undertrained=False)
    chosen = np.sort(generator.choice(len(distinct), count, replace=False))
    initial = split_spaces(distinct[chosen], config.num_subquantizers).swapaxes(0, 1).copy()
    if count < len(distinct):
        kept = start_SCw[:, :count]
        initial[:, : kept.shape[1]] = kept
    gather = spread(split_spaces(unit_Nd, config.num_subquantizers), config.num_shards)
    centroid_SCw, gathered = lloyd(initial, gather, config.iterations)
    return centroid_SCw, ChannelReport(
        points=len(unit_Nd),
        distinct=len(distinct),
        num_centroids=count,
        distortion=gathered.error / len(unit_Nd),
        dead=int((gathered.count_SC == 0).sum()),
        duplicates=sum(count - len(np.unique(centroid_Cw, axis=0)) for centroid_Cw in centroid_SCw),
        lossless=gathered.error == 0,
        undertrained=count < len(distinct) < POINTS_PER_CENTROID * count,
    )


def _checked(unit_Nd: ndarray, channel: str) -> ndarray:
    if len(unit_Nd) > MAX_POINTS:
        got, fix = f"{len(unit_Nd):,} training vectors", "lower codebooks.sample_items"
        raise ConfigError(explain(f"channel {channel}", got=got, expected=f"at most {MAX_POINTS:,}", fix=fix))
    norm_N = np.linalg.norm(unit_Nd, axis=1)
    # Fixed-point sums need the unit ball, no more; a zero vector (an untrained row) is harmless. NaN fails the comparison.
    bad = np.flatnonzero(~(norm_N < 1.01))
    if len(bad):
        got = f"norm {norm_N[bad[0]]} in row {bad[0]}"
        raise DataError(explain(f"channel {channel}", got=got, expected="unit vectors", fix="normalise, or mark it missing"))
    return unit_Nd


def _distinct(vector_Nd: ndarray) -> ndarray:
    """Distinct rows in a fixed order. Rows within 2**-12 in every coordinate may count as one: the same content, projected in two
    blocks, differs in the last bits. Compared as bytes, which is five times faster than by value."""
    grid = np.rint(vector_Nd * 4096).astype(np.int16)
    rows = grid.view(np.dtype((np.void, grid.itemsize * grid.shape[1])))[:, 0]
    return vector_Nd[np.unique(rows, return_index=True)[1]]


def sample_rows(present_N: Bool[ndarray, " N"], size: int, seed: int) -> Int[ndarray, " n"]:
    """Rows of at most `size` present vectors, increasing: those of smallest hash. Rows added later displace few of the chosen."""
    rows = np.flatnonzero(present_N)
    if len(rows) <= size:
        return rows
    rank = mix64(mix64(rows.astype(np.uint64)) + np.uint64(seed))
    return np.sort(rows[np.argpartition(rank, size - 1)[:size]])
