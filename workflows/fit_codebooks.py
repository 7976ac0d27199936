"""fit-codebooks: the catalogue's unit vectors -> codebooks and codes of every channel, stamped with both versions.

    rows by hash, until every channel has its sample -> k-means over shards of the sample, channels side by side, centroids
    broadcast and statistics added each iteration -> unit vectors and codes of the whole catalogue, block by block

Encoding is what grows with the catalogue: a task makes the unit vectors of a block of rows and their codes, and only codes leave
it. The driver holds the sample (256 bytes a vector at d=64) and the codes that are published, never the catalogue's vectors.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from numpy import ndarray

from seminar.artifacts import Artifact, Store
from seminar.bundle import assemble, current_index
from seminar.channels import ChannelEncoder, VectorTables
from seminar.codes.codebook import CatalogueCodes, Codebooks, Stamp, encode_block, load_codes, save_codes
from seminar.codes.codebook_fit import fit
from seminar.codes.distinct import sampling_order
from seminar.codes.error_report import Loss, losses, sentence
from seminar.codes.rotation import OverShards
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
    def unit_vectors(self, side: str, rows: range | Int[ndarray, " n"]) -> tuple[Float32[ndarray, "n K d"], Bool[ndarray, "n K"]]:
        """Unit vectors of some catalogue rows in all channels of one of SIDES, and which exist."""
        encoder, index = self.encoder(), torch.from_numpy(np.asarray(rows, np.int64))
        unit, present = encoder.unit_queries(index) if side == "queries" else encoder.unit_items(index)
        shape = (len(rows), len(SIDES[side]), unit.shape[-1])
        return unit.view(shape).numpy(), present.view(shape[:2]).numpy()


@dataclass(frozen=True)
class Catalogue:
    """What the driver must know of a Source. train_count: behaviours in training, by side; queries are not counted."""

    fingerprint: str
    dim: int
    num_rows: dict[str, int]
    train_count: dict[str, Int[ndarray, " N"]]


@dataclass(frozen=True)
class SideCodes:
    """Codes of some rows of one side, and what they lose in each of its channels."""

    code_NKS: UInt8[ndarray, "N K S"]
    present_NK: Bool[ndarray, "N K"]
    loss_K: list[Loss]


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
        pairs = store.open("pairs", vectors.manifest.inputs["pairs"].version)
        assemble(store, model, made, pairs, vectors, current_index(store, vectors))
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
    warm = None if warm_from is None else load_codes(warm_from.file(FILE))
    with ray_session(settings.ray):
        cpus = settings.ray.cpus_per_worker
        catalogue = ray.get(_describe.options(num_cpus=cpus).remote(source))
        stamp = Stamp(version, catalogue.fingerprint)
        draft = store.draft("codebooks", inputs, config | {"psu_fingerprint": stamp.psu_fingerprint}, version)
        codebooks, codes, metrics = _fit_and_encode(settings.codebooks, source, catalogue, stamp, warm, cpus)
    save_codes(draft.path / FILE, codebooks, codes)
    return store.publish(draft, metrics, current=current)


def _fit_and_encode(
    config: CodebookConfig,
    source: Source,
    catalogue: Catalogue,
    stamp: Stamp,
    warm: tuple[Codebooks, CatalogueCodes] | None,
    cpus: float,
) -> tuple[Codebooks, CatalogueCodes, dict[str, Any]]:
    samples = [sample for side in SIDES for sample in _samples(source, side, catalogue, config, cpus)]
    with Progress("fit-codebooks: k-means", None, "vectors") as progress:
        old = None if warm is None else warm[0]
        codebooks, reports = fit(samples, config, stamp, old, partial(_over_cluster, cpus=cpus, progress=progress))
    old_rows = {"queries": len(warm[1].query_present_Q), "items": len(warm[1].item_present_I3)} if warm else {}
    coded = {side: _encode(source, side, catalogue, codebooks, old, old_rows.get(side, 0), cpus) for side in SIDES}
    queries, items = coded["queries"], coded["items"]
    codes = CatalogueCodes(items.code_NKS, queries.code_NKS[:, 0], items.present_NK, queries.present_NK[:, 0], stamp)
    loss_M = [*queries.loss_K, *items.loss_K]
    channels = {name: asdict(fitted) | loss.summary() for name, fitted, loss in zip(CHANNELS, reports, loss_M, strict=True)}
    for name, report in channels.items():
        print(f"fit-codebooks: {sentence(name, report)}", flush=True)
    facts = {**catalogue.num_rows, "bytes_per_behaviour": codebooks.bytes_per_behaviour}
    return codebooks, codes, facts | {"channels": channels}


def row_blocks(num_rows: int) -> list[range]:
    """Runs of catalogue rows, one also of an empty side, so that every array has its shape."""
    return [range(first, min(first + BLOCK, num_rows)) for first in range(0, max(num_rows, 1), BLOCK)]


def _samples(
    source: Source, side: str, catalogue: Catalogue, config: CodebookConfig, cpus: float
) -> list[Float32[ndarray, "n d"]]:
    """Of each channel of a side the first sample_items present unit vectors by hash, in the order of their rows.

    Rows are taken up until all channels have enough, so a channel that few rows have costs more of them.
    """
    order, channels = sampling_order(catalogue.num_rows[side], config.seed), range(len(SIDES[side]))
    rows_K: list[list[ndarray]] = [[np.empty(0, np.int64)] for _ in channels]
    unit_K: list[list[ndarray]] = [[np.empty((0, catalogue.dim), np.float32)] for _ in channels]

    def short() -> list[int]:
        return [column for column in channels if sum(map(len, rows_K[column])) < config.sample_items]

    def submit(rows: range) -> ray.ObjectRef:
        return _take.options(num_cpus=cpus).remote(source, side, order[rows.start : rows.stop], short())

    with Progress(f"fit-codebooks: sample of {side}", None, "rows") as progress:
        for rows, found in _in_order(submit, row_blocks(len(order)), lambda: not short()):
            for column, (place, unit) in found.items():
                rows_K[column].append(order[rows.start : rows.stop][place])
                unit_K[column].append(unit)
            progress.advance(len(rows))
    first = slice(config.sample_items)
    return [
        np.concatenate(units)[first][np.argsort(np.concatenate(rows)[first])] for rows, units in zip(rows_K, unit_K, strict=True)
    ]


def _over_cluster(points: ndarray, num_shards: int, cpus: float, progress: Progress) -> OverShards:
    shards = [ray.put(shard) for shard in np.array_split(points, num_shards)]

    def over_shards(function: Callable[[ndarray], Any]) -> list[Any]:
        held = ray.put(function)
        results = ray.get([_apply.options(num_cpus=cpus).remote(held, shard) for shard in shards])
        progress.advance(len(points))
        return results

    return over_shards


def _encode(
    source: Source, side: str, catalogue: Catalogue, codebooks: Codebooks, old: Codebooks | None, old_rows: int, cpus: float
) -> SideCodes:
    num_rows, count_N = catalogue.num_rows[side], catalogue.train_count.get(side)
    shape = (num_rows, len(SIDES[side]))
    code_NKS, present_NK = np.zeros((*shape, codebooks.num_subquantizers), np.uint8), np.zeros(shape, bool)
    loss_BK = []
    held, held_old = ray.put(codebooks), ray.put(old)

    def submit(rows: range) -> ray.ObjectRef:
        count = None if count_N is None else count_N[rows.start : rows.stop]
        task = _encode_block.options(num_cpus=cpus)
        return task.remote(source, side, rows, held, held_old, max(old_rows - rows.start, 0), count)

    with Progress(f"fit-codebooks: codes of {side}", num_rows, "rows") as progress:
        for rows, block in _in_order(submit, row_blocks(num_rows)):
            code_NKS[rows.start : rows.stop], present_NK[rows.start : rows.stop] = block.code_NKS, block.present_NK
            loss_BK.append(block.loss_K)
            progress.advance(len(rows))
    return SideCodes(code_NKS, present_NK, [reduce(add, loss_B) for loss_B in zip(*loss_BK, strict=True)])


def _in_order(
    submit: Callable[[range], ray.ObjectRef], spans: list[range], enough: Callable[[], bool] = lambda: False
) -> Iterator[tuple[range, Any]]:
    """Results of a task a span, in the order of spans; few enough in flight that their results fit beside what is kept."""
    in_flight = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 2)
    pending: deque[tuple[range, ray.ObjectRef]] = deque()
    for rows in spans:
        if enough():
            break
        pending.append((rows, submit(rows)))
        if len(pending) == in_flight:
            rows, ref = pending.popleft()
            yield rows, ray.get(ref)
    for rows, ref in pending:
        yield rows, ray.get(ref)


@lru_cache(maxsize=1)
def _load_encoder(source: Source) -> ChannelEncoder:
    store = Store(source.root)
    channels = load_ranker(store.open("model", source.model), store.open("vectors", source.vectors)).channels
    assert isinstance(channels, ChannelEncoder)
    return channels


@ray.remote
def _describe(source: Source) -> Catalogue:
    tables, encoder = source.tables(), source.encoder()
    num_rows = {"queries": tables.num_queries, "items": tables.num_items}
    return Catalogue(encoder.fingerprint(), encoder.project_query.shape[1], num_rows, {"items": tables.train_count})


@ray.remote
def _take(
    source: Source, side: str, rows: Int[ndarray, " n"], columns: list[int]
) -> dict[int, tuple[Int[ndarray, " r"], Float32[ndarray, "r d"]]]:
    unit_NKd, present_NK = source.unit_vectors(side, rows)
    return {column: (np.flatnonzero(present_NK[:, column]), unit_NKd[present_NK[:, column], column]) for column in columns}


@ray.remote
def _apply(function: Callable[[ndarray], Any], shard: ndarray) -> Any:
    return function(shard)


@ray.remote
def _encode_block(
    source: Source,
    side: str,
    rows: range,
    codebooks: Codebooks,
    old: Codebooks | None,
    first_new: int,
    count_N: Int[ndarray, " N"] | None,
) -> SideCodes:
    unit_NKd, present_NK = source.unit_vectors(side, rows)
    code_NKS, error_NK = encode_block(codebooks, SIDES[side], unit_NKd, present_NK)
    loss_K = losses(codebooks, old, SIDES[side], unit_NKd, present_NK, error_NK, first_new, count_N)
    return SideCodes(code_NKS, present_NK, loss_K)
