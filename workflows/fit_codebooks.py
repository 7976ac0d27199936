"""fit-codebooks: the catalogue's unit vectors -> codebooks and codes of every channel, stamped with both versions.

    blocks of catalogue rows -> unit vectors, left in the object store -> a sample of each channel -> k-means over shards of the
    sample, channels side by side, centroids broadcast and statistics added each iteration -> codes, block by block

Encoding is what grows with the catalogue and needs no driver; unit vectors cost 1 KiB an item of object store, spilled when full.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy import ndarray

from seminar.artifacts import Artifact, Store
from seminar.bundle import assemble
from seminar.channels import ChannelEncoder, VectorTables
from seminar.codes.codebook import CatalogueCodes, Codebooks, Drift, Stamp, drift, encode_block, load_codes, save_codes
from seminar.codes.codebook_fit import fit, sample_rows
from seminar.codes.kmeans import Gather, Statistics, statistics
from seminar.config import CodebookConfig, Settings
from seminar.progress import Progress
from seminar.ranker import load_ranker
from seminar.schema import ATTRIBUTES, CHANNELS, IMAGE, QUERY, TEXT
from workflows.runtime import ray_session

BLOCK = 8192
"""Catalogue rows a task; fixed, because the rounding of a projection may depend on the block."""
FILE = "codebooks.safetensors"
SIDES = {"queries": (QUERY,), "items": (TEXT, IMAGE, ATTRIBUTES)}
"""The two kinds of catalogue row and the channels each holds, in the order of their tensors' columns."""


@dataclass(frozen=True)
class Source:
    """Where workers load the encoder from: artefacts on storage that every node can read."""

    root: Path
    model: str
    vectors: str

    def tables(self) -> VectorTables:
        return VectorTables.load(Store(self.root).open("vectors", self.vectors))

    def encoder(self) -> ChannelEncoder:
        """The channel encoder, loaded once a process."""
        return _load_encoder(self)

    @torch.inference_mode()
    def unit_vectors(self, side: str, rows: range) -> tuple[Float32[ndarray, "n K d"], Bool[ndarray, "n K"]]:
        """Unit vectors of a run of catalogue rows in all channels of one of SIDES, and which exist."""
        encoder, index = self.encoder(), torch.arange(rows.start, rows.stop)
        unit, present = encoder.unit_queries(index) if side == "queries" else encoder.unit_items(index)
        shape = (len(rows), len(SIDES[side]), unit.shape[-1])
        return unit.view(shape).numpy(), present.view(shape[:2]).numpy()


@dataclass(frozen=True)
class Side:
    """One of SIDES in blocks of rows; their unit vectors [n, K, d] stay in the object store."""

    name: str
    spans: list[range]
    units: list[ray.ObjectRef]
    present_NK: Bool[ndarray, "N K"]

    @property
    def channels(self) -> tuple[int, ...]:
        return SIDES[self.name]


@dataclass(frozen=True)
class SideCodes:
    """Codes of one side; for each of its channels the sum of squared errors and, after a warm start, what changed."""

    code_NKS: UInt8[ndarray, "N K S"]
    error_K: Float[ndarray, " K"]
    drift_K: list[dict[str, Drift]]


def run(
    settings: Settings,
    store: Store,
    warm_from: Artifact | None = None,
    *,
    model: Artifact | None = None,
    vectors: Artifact | None = None,
    current: bool = True,
) -> Artifact:
    """Fit on a model and vectors (the current ones) and publish a `codebooks` artefact; the same inputs find the finished one.

    warm_from: start from these codebooks and report what changed against them. current: make the result current, and with it
    the bundle of everything it belongs to, which is what a service loads.
    """
    model, vectors = model or store.open("model"), vectors or store.open("vectors")
    made = _publish(settings, store, warm_from, model, vectors, current=current)
    if current:
        assemble(store, model, made, store.open("pairs", vectors.manifest.inputs["pairs"].version), vectors)
    return made


def _publish(
    settings: Settings, store: Store, warm_from: Artifact | None, model: Artifact, vectors: Artifact, *, current: bool
) -> Artifact:
    inputs = {"model": model, "vectors": vectors} | ({} if warm_from is None else {"warm": warm_from})
    config = settings.codebooks.model_dump(exclude={"num_shards"})
    version = store.version_of("codebooks", inputs, config)
    if store.exists("codebooks", version):
        if current:
            store.set_current("codebooks", version)
        return store.open("codebooks", version)
    source = Source(store.root.resolve(), model.version, vectors.version)
    stamp = Stamp(version, source.encoder().fingerprint())
    draft = store.draft("codebooks", inputs, config | {"psu_fingerprint": stamp.psu_fingerprint}, version)
    warm = None if warm_from is None else load_codes(warm_from.file(FILE))
    with ray_session(settings.ray):
        codebooks, codes, metrics = _fit_and_encode(settings, source, stamp, warm)
    save_codes(draft.path / FILE, codebooks, codes)
    return store.publish(draft, metrics, current=current)


def _fit_and_encode(
    settings: Settings, source: Source, stamp: Stamp, warm: tuple[Codebooks, CatalogueCodes] | None
) -> tuple[Codebooks, CatalogueCodes, dict[str, Any]]:
    cpus, config, tables = settings.ray.cpus_per_worker, settings.codebooks, source.tables()
    queries = _unit_vectors(source, "queries", tables.num_queries, cpus)
    items = _unit_vectors(source, "items", tables.num_items, cpus)
    samples = [_sample(side, column, config) for side in (queries, items) for column in range(len(side.channels))]
    old, old_queries, old_items = (warm[0], len(warm[1].query_present_Q), len(warm[1].item_present_I3)) if warm else (None, 0, 0)
    with Progress("fit-codebooks: k-means", sum(map(len, samples)) * (config.iterations + 1), "vectors") as progress:
        codebooks, reports = fit(samples, config, stamp, old, partial(_over_cluster, cpus=cpus, progress=progress))
    coded = _encode(queries, codebooks, old, old_queries, cpus), _encode(items, codebooks, old, old_items, cpus)
    codes = CatalogueCodes(coded[1].code_NKS, coded[0].code_NKS[:, 0], items.present_NK, queries.present_NK[:, 0], stamp)
    measured = {**_measured(queries, coded[0]), **_measured(items, coded[1])}
    channels = {name: asdict(report) | measured[name] for name, report in zip(CHANNELS, reports, strict=True)}
    return codebooks, codes, {"items": len(items.present_NK), "queries": len(queries.present_NK), "channels": channels}


def _measured(side: Side, encoded: SideCodes) -> dict[str, dict[str, Any]]:
    """By channel, over the whole catalogue: vectors, their mean squared error, and drift after a warm start."""
    vectors = side.present_NK.sum(0)
    distortion = (encoded.error_K / np.maximum(vectors, 1)).tolist()
    return {
        CHANNELS[channel]: {
            "vectors": int(vectors[column]),
            "catalogue_distortion": distortion[column],
            "drift": {part: found.summary() for part, found in encoded.drift_K[column].items()},
        }
        for column, channel in enumerate(side.channels)
    }


def _unit_vectors(source: Source, name: str, num_rows: int, cpus: float) -> Side:
    spans = row_blocks(num_rows)
    task = _unit.options(num_cpus=cpus, num_returns=2)
    units, presence = zip(*(task.remote(source, name, rows) for rows in spans), strict=True)
    present = []
    with Progress(f"fit-codebooks: unit vectors of {name}", num_rows, "rows") as progress:
        for ref, rows in zip(presence, spans, strict=True):
            present.append(ray.get(ref))
            progress.advance(len(rows))
    return Side(name, spans, list(units), np.concatenate(present))


def row_blocks(num_rows: int) -> list[range]:
    """Runs of catalogue rows, one also of an empty side, so that every array has its shape."""
    return [range(first, min(first + BLOCK, num_rows)) for first in range(0, max(num_rows, 1), BLOCK)]


def _sample(side: Side, column: int, config: CodebookConfig) -> Float32[ndarray, "n d"]:
    """At most sample_items present unit vectors of a channel, in the order of their rows."""
    chosen = sample_rows(side.present_NK[:, column], config.sample_items, config.seed)
    bounds = np.searchsorted(chosen, [rows.start for rows in side.spans[1:]])
    parts = zip(side.units, np.split(chosen, bounds), side.spans, strict=True)
    return np.concatenate(ray.get([_take.remote(unit, rows - span.start, column) for unit, rows, span in parts]))


def _over_cluster(point_NSw: Float32[ndarray, "N S w"], num_shards: int, cpus: float, progress: Progress) -> Gather:
    shards = [ray.put(shard) for shard in np.array_split(point_NSw, num_shards)]

    def gather(centroid_SCw: Float32[ndarray, "S C w"]) -> list[Statistics]:
        centroids = ray.put(centroid_SCw)
        gathered = ray.get([_statistics.options(num_cpus=cpus).remote(shard, centroids) for shard in shards])
        progress.advance(len(point_NSw))
        return gathered

    return gather


def _encode(side: Side, codebooks: Codebooks, old: Codebooks | None, old_rows: int, cpus: float) -> SideCodes:
    new_ref, old_ref = ray.put(codebooks), ray.put(old)
    task = _encode_block.options(num_cpus=cpus)
    present = np.split(side.present_NK, [rows.start for rows in side.spans[1:]])
    refs = [
        task.remote(new_ref, old_ref, side.channels, unit, here, max(old_rows - rows.start, 0))
        for unit, here, rows in zip(side.units, present, side.spans, strict=True)
    ]
    blocks = []
    with Progress(f"fit-codebooks: codes of {side.name}", len(side.present_NK), "rows") as progress:
        for ref, rows in zip(refs, side.spans, strict=True):
            blocks.append(ray.get(ref))
            progress.advance(len(rows))
    drift_K = [
        {part: reduce(Drift.__add__, (block.drift_K[column][part] for block in blocks)) for part in blocks[0].drift_K[column]}
        for column in range(len(side.channels))
    ]
    return SideCodes(np.concatenate([b.code_NKS for b in blocks]), np.sum([b.error_K for b in blocks], axis=0), drift_K)


@lru_cache(maxsize=1)
def _load_encoder(source: Source) -> ChannelEncoder:
    store = Store(source.root)
    channels = load_ranker(store.open("model", source.model), store.open("vectors", source.vectors)).channels
    assert isinstance(channels, ChannelEncoder)
    return channels


@ray.remote
def _unit(source: Source, name: str, rows: range) -> tuple[Float32[ndarray, "n K d"], Bool[ndarray, "n K"]]:
    return source.unit_vectors(name, rows)


@ray.remote
def _take(unit_NKd: Float32[ndarray, "n K d"], rows: Int[ndarray, " r"], column: int) -> Float32[ndarray, "r d"]:
    return unit_NKd[rows, column]


@ray.remote
def _statistics(point_NSw: Float32[ndarray, "n S w"], centroid_SCw: Float32[ndarray, "S C w"]) -> Statistics:
    return statistics(point_NSw, centroid_SCw)


@ray.remote
def _encode_block(
    codebooks: Codebooks,
    old: Codebooks | None,
    channels: tuple[int, ...],
    unit_NKd: Float32[ndarray, "n K d"],
    present_NK: Bool[ndarray, "n K"],
    first_new: int,
) -> SideCodes:
    code_NKS, error_K = encode_block(codebooks, channels, unit_NKd, present_NK)
    drift_K: list[dict[str, Drift]] = [{} for _ in channels]
    if old is not None:
        is_new = np.arange(len(present_NK)) >= first_new
        for column, channel in enumerate(channels):
            compared = {"all": present_NK[:, column], "new": present_NK[:, column] & is_new}
            drift_K[column] = {part: drift(old, codebooks, channel, unit_NKd[rows, column]) for part, rows in compared.items()}
    return SideCodes(code_NKS, error_K, drift_K)
