"""Fitting the codebooks of all channels: ~.7 s of one core per 65k vectors; the loop runs in one process or over a cluster.

A channel never gets more centroids than it has distinct vectors; with that few, each is its own centroid and codes are lossless.
With fewer than 39 points a centroid the count is *not* cut: on held-out vectors 256 centroids fitted to 300 points lose a quarter
of what 300 / 39 = 7 lose (.12 against .51 Gaussian, .06 against .38 clustered). The report says `undertrained` instead.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from seminar.codes.codebook import Codebooks, Stamp
from seminar.codes.distinct import distinct_rows, in_old_places
from seminar.codes.faiss_trainer import faiss_kmeans
from seminar.codes.kmeans import MAX_POINTS, Statistics, lloyd, merge, split_spaces, statistics
from seminar.codes.rotation import OverShards, is_identity, learn_rotation, rotate
from seminar.config import CodebookConfig
from seminar.errors import ConfigError, DataError, VersionMismatch, explain
from seminar.schema import CHANNELS

POINTS_PER_CENTROID = 39
"""Below this a codebook counts as undertrained (a rule of thumb of the PQ literature, also faiss's)."""


@dataclass(frozen=True)
class ChannelReport:
    """How well one channel was fitted. distortion: mean squared error of its training vectors (unit norm), in [0, 4].

    dead: centroids no training vector uses, duplicates: centroids equal to an earlier one, kept: centroids that a warm start left
    where they were; all of num_centroids * S.
    """

    points: int
    distinct: int
    num_centroids: int
    distortion: float
    dead: int
    duplicates: int
    kept: int
    lossless: bool
    undertrained: bool
    rotated: bool


@dataclass(frozen=True)
class Fitted:
    """One channel: what it has of `Codebooks`, and its report."""

    centroid_SCw: Float32[ndarray, "S C w"]
    rotation_dd: Float32[ndarray, "d d"]
    report: ChannelReport


Spread = Callable[[ndarray, int], OverShards]
"""Places points [N, ...] as so many shards."""


def in_process(points: ndarray, num_shards: int) -> OverShards:
    """Shards in this process; the Ray job spreads them over a cluster with the same functions."""
    shards = np.array_split(points, num_shards)
    return lambda function: [function(shard) for shard in shards]


def fit(
    vector_M: Sequence[Float[ndarray, "_ d"]],
    config: CodebookConfig,
    stamp: Stamp,
    warm: Codebooks | None = None,
    spread: Spread = in_process,
) -> tuple[Codebooks, list[ChannelReport]]:
    """Codebooks of all channels from their present unit vectors (any number, also none), bitwise equal for any num_shards.

    warm: start from these centroids and rotations, so that most codes stay as they are. Raises DataError for vectors that are not
    unit vectors, ConfigError where the sub-spaces do not fit, VersionMismatch where `warm` has another shape.
    """
    dim = vector_M[0].shape[1]
    if dim % config.num_subquantizers:
        what = f"num_subquantizers ({config.num_subquantizers})"
        raise ConfigError(explain(what, got=f"dim {dim}", expected="a multiple of it", fix="choose a divisor of dim"))
    spaces, width = config.num_subquantizers, dim // config.num_subquantizers
    if warm is not None and (warm.num_subquantizers, warm.dim) != (spaces, dim):
        got = f"{warm.num_subquantizers} sub-spaces of dim {warm.dim}"
        raise VersionMismatch(explain(f"warm start from {warm.stamp}", got=got, expected=f"{spaces} of {dim}", fix="fit cold"))

    def fit_one(channel: int) -> Fitted:
        unit_Nd = _checked(vector_M[channel], CHANNELS[channel])
        has_start = warm is not None and warm.num_centroids_M[channel]
        start = (warm.used(channel), warm.rotation_Mdd[channel]) if warm is not None and has_start else None
        return _fit_channel(unit_Nd, config, np.random.default_rng([config.seed, channel]), start, spread)

    with ThreadPoolExecutor(len(vector_M)) as pool:
        fitted = list(pool.map(fit_one, range(len(vector_M))))
    centroid_MSCw = np.zeros((len(fitted), spaces, config.num_centroids, width), np.float32)
    for channel, one in enumerate(fitted):
        centroid_MSCw[channel, :, : one.centroid_SCw.shape[1]] = one.centroid_SCw
    counts = np.array([one.centroid_SCw.shape[1] for one in fitted])
    rotation_Mdd = np.stack([one.rotation_dd for one in fitted])
    return Codebooks(centroid_MSCw, counts, rotation_Mdd, stamp), [one.report for one in fitted]


def _fit_channel(
    unit_Nd: ndarray,
    config: CodebookConfig,
    generator: np.random.Generator,
    start: tuple[ndarray, ndarray] | None,
    spread: Spread,
) -> Fitted:
    distinct, spaces, dim = distinct_rows(unit_Nd), config.num_subquantizers, unit_Nd.shape[1]
    count = min(config.num_centroids, len(distinct))
    if not count:
        report = ChannelReport(0, 0, 0, 0.0, 0, 0, 0, lossless=True, undertrained=False, rotated=False)
        return Fitted(np.empty((spaces, 0, dim // spaces), np.float32), np.eye(dim, dtype=np.float32), report)
    chosen = np.sort(generator.choice(len(distinct), count, replace=False))
    rotation, initial = _begin(unit_Nd, distinct, chosen, config, start, spread)
    points = split_spaces(rotate(unit_Nd, rotation), spaces)
    over_shards = spread(points, config.num_shards)

    def gather(centroid_SCw: Float32[ndarray, "S C w"]) -> list[Statistics]:
        return over_shards(partial(statistics, centroid_SCw=centroid_SCw))

    if config.trainer == "faiss" and start is None and count < len(distinct):
        centroid_SCw = faiss_kmeans(points, initial, config.iterations)
        gathered = merge(gather(centroid_SCw))
    else:
        centroid_SCw, gathered = lloyd(initial, gather, config.iterations, 0.0 if start is None else config.warm_gain)
    old_SCw = centroid_SCw[:, :0] if start is None else start[0][:, :count]
    report = ChannelReport(
        points=len(unit_Nd),
        distinct=len(distinct),
        num_centroids=count,
        distortion=gathered.error / len(unit_Nd),
        dead=int((gathered.count_SC == 0).sum()),
        duplicates=sum(count - len(np.unique(centroid_Cw, axis=0)) for centroid_Cw in centroid_SCw),
        kept=int((centroid_SCw[:, : old_SCw.shape[1]] == old_SCw).all(-1).sum()),
        lossless=gathered.error == 0,
        undertrained=count < len(distinct) < POINTS_PER_CENTROID * count,
        rotated=not is_identity(rotation),
    )
    return Fitted(centroid_SCw, rotation, report)


def _begin(
    unit_Nd: ndarray,
    distinct_Nd: ndarray,
    chosen_C: ndarray,
    config: CodebookConfig,
    start: tuple[ndarray, ndarray] | None,
    spread: Spread,
) -> tuple[Float32[ndarray, "d d"], Float32[ndarray, "S C w"]]:
    """A channel's rotation, and the centroids that k-means starts from."""
    rotation, centroids = np.eye(unit_Nd.shape[1], dtype=np.float32), distinct_Nd[chosen_C]
    if len(chosen_C) == len(distinct_Nd):
        # Never rotated: there is no error to lower, and codes decode to the very bits.
        centroids = distinct_Nd if start is None else in_old_places(distinct_Nd, start[0])
    elif start is not None:
        rotation = start[1]
    elif config.rotation == "opq":
        over_shards = spread(unit_Nd, config.num_shards)
        return learn_rotation(over_shards, distinct_Nd, chosen_C, config.num_subquantizers, config.iterations)
    initial_SCw = split_spaces(rotate(centroids, rotation), config.num_subquantizers).swapaxes(0, 1).copy()
    if start is not None and len(chosen_C) < len(distinct_Nd):
        initial_SCw[:, : start[0].shape[1]] = start[0][:, : len(chosen_C)]
    return rotation, initial_SCw


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
