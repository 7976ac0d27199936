"""build-index: the item tower over the whole catalogue, block by block -> an index of it, tested against exact search.

rows in blocks -> _vectors/<first row>.npy       one task a block; a rerun does the missing ones
shards         -> _queries/<shard>.parquet       which items were taken under which query
all of it      -> index, recall, user tower      `index` artefact; the bundle in use is assembled again with it
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy import ndarray

from seminar.artifacts import Artifact, Store
from seminar.bundle import assemble
from seminar.candidates.full_ranking import ask
from seminar.candidates.index import ItemIndex, recall
from seminar.candidates.mmsrec import MMSRec
from seminar.candidates.proposer import Proposer, QueryItems
from seminar.candidates.tower import DualTower, item_vectors
from seminar.config import IndexConfig, Settings
from seminar.errors import ConfigError, explain
from seminar.evaluate.protocol import HeldOut
from seminar.progress import Progress
from seminar.schema import NONE
from seminar.sequences import Histories, read_histories
from seminar.train.retriever import load_retriever
from workflows.runtime import ray_session, stream

BLOCK = 16_384
"""Catalogue rows a task."""
RECALL_AT = 100


def run(
    settings: Settings,
    store: Store,
    *,
    retriever: Artifact | None = None,
    vectors: Artifact | None = None,
    current: bool = True,
) -> Artifact:
    """Publish the `index` of a retriever (the current one) over the catalogue of some vectors; found or resumed if it was begun.

    current: make it current and, where there is a bundle of the same vectors, assemble that again with the index in it.
    """
    store = Store(store.root.resolve())
    retriever, vectors = retriever or store.open("retriever"), vectors or store.open("vectors")
    pairs = store.open("pairs", vectors.manifest.inputs["pairs"].version)
    index = _publish(settings, store, retriever, vectors, pairs, current=current)
    if current:
        _into_bundle(store, index, vectors, pairs)
    return index


def _publish(
    settings: Settings, store: Store, retriever: Artifact, vectors: Artifact, pairs: Artifact, *, current: bool
) -> Artifact:
    inputs, config = {"retriever": retriever, "vectors": vectors, "pairs": pairs}, settings.index.model_dump(mode="json")
    version = store.version_of("index", inputs, config)
    if store.exists("index", version):
        if current:
            store.set_current("index", version)
        return store.open("index", version)
    kind = retriever.manifest.config["retriever"]["kind"]
    if kind != "mmsrec":
        fix = "train with retriever.kind mmsrec"
        raise ConfigError(explain(f"retriever {retriever.version}", got=kind, expected="mmsrec", fix=fix))
    draft = store.draft("index", inputs, config)
    with ray_session(settings.ray):
        item_Id = _all_vectors(settings, draft.path, retriever, vectors, int(pairs.manifest.metrics["items"]))
        query_items = _query_items(settings, draft.path, pairs)
    tower = load_retriever(retriever, vectors)
    assert isinstance(tower, MMSRec)
    index = ItemIndex.build(item_Id, settings.index)
    found = _measure(index, item_Id, tower, pairs, settings.index)
    Proposer.of(tower, index, query_items).save(draft.path)
    print(f"build-index: {len(item_Id):,} items, {index.kind}, recall@{RECALL_AT} {found:.4f} against exact search")
    return store.publish(
        draft, {"items": len(item_Id), "kind": index.kind, "recall": found, "recall_at": RECALL_AT}, current=current
    )


def encode_block(row: dict[str, Any], folder: Path, retriever: Path, vectors: Path) -> dict[str, Any]:
    """Item vectors of the catalogue rows [first, last) to a file."""
    tower = _tower(retriever, vectors)
    block = item_vectors(tower, np.arange(row["first"], row["last"]))
    _write(folder / f"{row['first']:09d}.npy", block)
    return {"items": len(block)}


def count_queries(row: dict[str, Any], folder: Path, pairs: Path) -> dict[str, Any]:
    """How often each item was taken under each query in the training part of one shard."""
    histories = read_histories(pq.read_table(pairs / row["shard"]))
    inside = np.arange(len(histories.item)) - np.repeat(histories.offsets[:-1], histories.lengths)
    kept = (histories.query != NONE) & (inside < np.repeat(histories.train_end, histories.lengths))
    pair, count = np.unique(np.stack([histories.query[kept], histories.item[kept]]), axis=1, return_counts=True)
    path = folder / f"{Path(row['shard']).stem}.parquet"
    pq.write_table(pa.table({"query": pair[0], "item": pair[1], "count": count}), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)
    return {"pairs": len(count)}


def _all_vectors(
    settings: Settings, draft: Path, retriever: Artifact, vectors: Artifact, num_items: int
) -> Float[ndarray, "I d"]:
    folder = draft / "_vectors"
    folder.mkdir(exist_ok=True)
    work = [{"first": first, "last": min(first + BLOCK, num_items)} for first in range(0, num_items, BLOCK)]
    missing = [row for row in work if not (folder / f"{row['first']:09d}.npy").is_file()]
    step = partial(encode_block, folder=folder, retriever=retriever.path, vectors=vectors.path)
    done = num_items - sum(row["last"] - row["first"] for row in missing)
    with Progress("build-index: item tower", num_items, "items", done=done) as progress:
        for result in stream(step, missing, settings.ray, gpus=True):
            progress.advance(result["items"])
    return np.concatenate([np.load(folder / f"{row['first']:09d}.npy") for row in work])


def _query_items(settings: Settings, draft: Path, pairs: Artifact) -> QueryItems:
    folder = draft / "_queries"
    folder.mkdir(exist_ok=True)
    shards = sorted(name for name in pairs.manifest.files if name.startswith("shards/"))
    missing = [{"shard": name} for name in shards if not (folder / f"{Path(name).stem}.parquet").is_file()]
    for _ in stream(partial(count_queries, folder=folder, pairs=pairs.path), missing, settings.ray):
        pass
    counted = pa.concat_tables([pq.read_table(folder / f"{Path(name).stem}.parquet") for name in shards])
    total = counted.group_by(["query", "item"]).aggregate([("count", "sum")])
    query, item, count = (total[name].to_numpy().astype(np.int64) for name in ("query", "item", "count_sum"))
    num_queries = pq.read_metadata(pairs.file("queries.parquet")).num_rows
    return QueryItems.count(query, item, count, num_queries, settings.index.query_items)


def _measure(index: ItemIndex, item_Id: Float[ndarray, "I d"], tower: DualTower, pairs: Artifact, config: IndexConfig) -> float:
    """Recall against exact search, for the newest vectors of some users; 0 where there is nobody to ask for."""
    found = []
    for histories, now in _probes(pairs, config.probe_users):
        user_Nd = ask(tower, histories, now)
        found.append(recall(item_Id, user_Nd, index.search(user_Nd, RECALL_AT)[0]))
    return float(np.concatenate(found).mean()) if found else 0.0


def _probes(pairs: Artifact, users: int) -> Iterator[tuple[Histories, list[HeldOut]]]:
    """The first users of the first shards, asked for their last request."""
    for name in sorted(name for name in pairs.manifest.files if name.startswith("shards/")):
        histories = read_histories(pq.read_table(pairs.file(name)))
        rows = [row for row in range(len(histories)) if histories.lengths[row]][:users]
        if rows:
            starts = [histories.request_starts(row) for row in rows]
            yield (
                histories,
                [HeldOut(row, row, int(s[-2]), int(s[-2]), int(s[-1])) for row, s in zip(rows, starts, strict=True)],
            )
        users -= len(rows)
        if users <= 0:
            return


def _into_bundle(store: Store, index: Artifact, vectors: Artifact, pairs: Artifact) -> None:
    """The bundle in use, if it is of the same vectors, again with this index."""
    bundle = store.in_use("bundle")
    if bundle is None or bundle.manifest.inputs["vectors"].checksum != vectors.manifest.checksum:
        return
    made_from = bundle.manifest.inputs
    model, codebooks = (store.open(kind, made_from[kind].version) for kind in ("model", "codebooks"))
    assemble(store, model, codebooks, pairs, vectors, index)


def _write(path: Path, block: ndarray) -> None:
    np.save(path.with_suffix(".tmp.npy"), block)
    path.with_suffix(".tmp.npy").rename(path)


@lru_cache(maxsize=1)
def _tower(retriever: Path, vectors: Path) -> DualTower:
    torch.set_num_threads(1)
    return load_retriever(Artifact.at(retriever), Artifact.at(vectors)).to("cuda" if torch.cuda.is_available() else "cpu")
