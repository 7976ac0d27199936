"""evaluate-retriever: the whole catalogue ranked for every held-out behaviour, by towers, neighbours and floors -> a report.

    training behaviours      -> _queries, _neighbours   what is counted: items under each query, item-kNN; one task
    a shard's held-out rows  -> _rows/<shard>.*         every scorer on the same behaviours; a rerun scores the missing shards
    candidates, then ranked  -> the same rows           what two stages find, beside each alone

The current `retriever` is judged, and beside it the current `sasrec` and `two_tower` of the same pairs and vectors, if there are
any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.sparse import load_npz, save_npz

from seminar.artifacts import Artifact, Store
from seminar.candidates.full_ranking import (
    CatalogueScores,
    QueryCounts,
    by_history,
    by_popularity,
    by_query,
    by_tower,
    rank_catalogue,
    visible_items,
)
from seminar.candidates.neighbours import ItemNeighbours
from seminar.candidates.proposer import SOURCES, Proposer
from seminar.candidates.report import NAMES, write_retriever_report
from seminar.candidates.two_stage import Propose, by_proposer, most_popular, rank_candidates
from seminar.config import EvaluateConfig, EvaluateRetrieverConfig, Settings
from seminar.evaluate.evaluation import FULL, Rows
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import HeldOut, ScoreFn, held_out_pairs, in_user_sample
from seminar.evaluate.summary import summarise
from seminar.models import load_model
from seminar.progress import Progress
from seminar.sequences import Histories, read_histories
from seminar.train.retriever import TOWERS, load_retriever
from workflows.runtime import ray_session, stream

RANKED = "SEMINAR"


@dataclass(frozen=True)
class Job:
    """What a task needs: artefacts on storage every node can read, and where rows go.

    towers: name of a scorer to the kind and version of its artefact.
    """

    root: Path
    versions: dict[str, str]
    towers: dict[str, tuple[str, str]]
    protocol: EvaluateConfig
    config: EvaluateRetrieverConfig
    ranked_share: float
    folder: Path

    def __hash__(self) -> int:
        return hash(self.folder)

    def open(self, kind: str) -> Artifact:
        return Store(self.root).open(kind, self.versions[kind])


def run(settings: Settings, store: Store) -> Artifact:
    """Evaluate the current retriever and publish a `retriever_report`; the same inputs find the finished one."""
    store = Store(store.root.resolve())
    inputs = _inputs(store)
    protocol = {name: settings.evaluate.protocol[name] for name in ("split", "seed", "max_history")}
    config = {"protocol": protocol, **settings.evaluate_retriever.model_dump()}
    version = store.version_of("retriever_report", inputs, config)
    if store.exists("retriever_report", version):
        store.set_current("retriever_report", version)
        return store.open("retriever_report", version)
    draft = store.draft("retriever_report", inputs, config)
    names = {"retriever": NAMES["mmsrec"], **{kind: NAMES[kind] for kind in TOWERS if kind != "mmsrec"}}
    towers = {name: inputs[kind] for kind, name in names.items() if kind in inputs}
    rows = rank_all(settings, store, inputs, towers, draft.path)
    rows.write(draft.path)
    lines = summarise([rows], np.random.default_rng(settings.evaluate.seed), (NAMES["popularity"], NAMES["history"]), sliced=FULL)
    index = inputs["index"].manifest.metrics if "index" in inputs else None
    versions = {kind: artifact.version for kind, artifact in inputs.items()}
    print("\n".join(write_retriever_report(draft.path, lines, versions, settings.evaluate_retriever, index)))
    return store.publish(draft)


def rank_all(
    settings: Settings, store: Store, inputs: Mapping[str, Artifact], towers: Mapping[str, Artifact], folder: Path
) -> Rows:
    """Rows of the towers, under the names given, and of the floors, on all held-out behaviours of `inputs["pairs"]`.

    With `model` and `index` among the inputs, also those of two stages. folder: scratch is kept in it, so that a rerun does the
    rest.
    """
    (folder / "_rows").mkdir(parents=True, exist_ok=True)
    pairs, config = inputs["pairs"], settings.evaluate_retriever
    two_stage = {"model", "index"} <= set(inputs)
    job = Job(
        store.root,
        {kind: artifact.version for kind, artifact in inputs.items()},
        {name: (tower.manifest.kind, tower.version) for name, tower in towers.items()},
        settings.evaluate.model_copy(update={"one_per_user": False}),
        config,
        min(config.ranked_users / max(int(pairs.manifest.metrics["users"]), 1), 1.0) if two_stage else 0.0,
        folder,
    )
    shards = sorted(name for name in pairs.manifest.files if name.startswith("shards/"))
    missing = [{"shard": name} for name in shards if not (folder / "_rows" / f"{Path(name).stem}.json").is_file()]
    with ray_session(settings.ray):
        if missing:
            list(stream(partial(fit_counts, job=job), [{"shards": len(shards)}], settings.ray))
        with Progress("evaluate-retriever", len(shards), "shards", done=len(shards) - len(missing)) as progress:
            for _ in stream(partial(score_shard, job=job), missing, settings.ray):
                progress.advance(1)
    return Rows.concat([Rows.read(folder / "_rows", Path(name).stem) for name in shards])


def fit_counts(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """What scorers count in the training part of all shards, to files: items taken under each query, and item-kNN."""
    neighbours, queries = (job.folder / f"_{name}.npz" for name in ("neighbours", "queries"))
    if not queries.is_file() or (job.config.neighbours and not neighbours.is_file()):
        columns, first = [], 0
        for histories in _shards(job):
            inside = np.arange(len(histories.item)) - np.repeat(histories.offsets[:-1], histories.lengths)
            kept = inside < np.repeat(histories.train_end, histories.lengths)
            user = first + np.repeat(np.arange(len(histories)), histories.lengths)
            columns.append(np.stack([column[kept].astype(np.int64) for column in (user, histories.item, histories.query)]))
            first += len(histories)
        user_N, item_N, query_N = np.concatenate(columns, 1)
        if job.config.neighbours:
            num_items = int(job.open("pairs").manifest.metrics["items"])
            found = ItemNeighbours.fit(user_N, item_N, num_items, job.config.neighbours, job.config.shrinkage)
            save_npz(neighbours.with_suffix(".tmp.npz"), found.similarity)
            neighbours.with_suffix(".tmp.npz").rename(neighbours)
        num_queries = pq.read_metadata(job.open("pairs").file("queries.parquet")).num_rows
        np.savez(queries.with_suffix(".tmp.npz"), **vars(QueryCounts.fit(query_N, item_N, num_queries)))
        queries.with_suffix(".tmp.npz").rename(queries)
    return {"shards": row["shards"]}


def score_shard(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """All scorers on the held-out behaviours of one shard."""
    torch.set_num_threads(1)
    pool, scorers, two_stage = _loaded(job)
    histories = read_histories(pq.read_table(job.open("pairs").file(row["shard"])))
    parts = [rank_catalogue(histories, pool, held_out_pairs(histories, job.protocol), scorers)]
    if two_stage:
        one = job.protocol.model_copy(update={"one_per_user": True})
        chosen = np.flatnonzero(in_user_sample(histories, job.protocol.seed, job.ranked_share))
        pairs = held_out_pairs(histories, one, chosen)
        parts.append(rank_candidates(histories, pool, pairs, two_stage, job.protocol.max_history))
    Rows.concat(parts).write(job.folder / "_rows", Path(row["shard"]).stem)
    return {"pairs": sum(len(part.ranked) for part in parts)}


@lru_cache(maxsize=1)
def _loaded(job: Job) -> tuple[ItemPool, dict[str, CatalogueScores], dict[str, tuple[Propose, ScoreFn | None]]]:
    pool = ItemPool.of(pq.read_table(job.open("pairs").file("items.parquet")))
    vectors = job.open("vectors")
    scorers: dict[str, CatalogueScores] = {NAMES["popularity"]: by_popularity(pool), NAMES["history"]: by_history(pool)}
    taken = np.load(job.folder / "_queries.npz")
    counts = QueryCounts(taken["offsets"], taken["item"], taken["count"])
    scorers |= {NAMES[name]: by_query(pool, counts, own=own) for name, own in (("query", False), ("own_query", True))}
    if job.config.neighbours:
        scorers[NAMES["neighbours"]] = _by_neighbours(job.folder / "_neighbours.npz")
    for name, (kind, version) in job.towers.items():
        scorers[name] = by_tower(load_retriever(Store(job.root).open(kind, version), vectors))
    return pool, scorers, _two_stage(job, pool, vectors) if job.ranked_share else {}


def _two_stage(job: Job, pool: ItemPool, vectors: Artifact) -> dict[str, tuple[Propose, ScoreFn | None]]:
    model, count = load_model(job.open("model"), vectors), job.config.candidates
    proposer = Proposer.load(job.open("index").path)
    retrieved = by_proposer(proposer, count, ("retrieved",))
    return {
        f"{NAMES['mmsrec']} alone": (retrieved, None),
        f"{count} most popular, then {RANKED}": (most_popular(pool, count), model.score),
        f"{count} in-history, then {RANKED}": (by_proposer(proposer, 2 * count, ("history",)), model.score),
        f"{count} in-history and of the query, then {RANKED}": (by_proposer(proposer, count, ("history", "query")), model.score),
        f"{count} of {NAMES['mmsrec']}, then {RANKED}": (retrieved, model.score),
        f"{count} of all sources, then {RANKED}": (by_proposer(proposer, count, SOURCES), model.score),
    }


def _by_neighbours(path: Path) -> CatalogueScores:
    neighbours = ItemNeighbours(load_npz(path))

    def score(histories: Histories, pairs: Sequence[HeldOut]) -> Any:
        return neighbours.scores([visible_items(histories, pair) for pair in pairs])

    return score


def _shards(job: Job) -> Any:
    pairs = job.open("pairs")
    for name in sorted(name for name in pairs.manifest.files if name.startswith("shards/")):
        yield read_histories(pq.read_table(pairs.file(name)))


def _inputs(store: Store) -> dict[str, Artifact]:
    """The current retriever, what it was made from, and whatever else is current and of the same pairs and vectors."""
    inputs = {kind: store.open(kind) for kind in ("retriever", "pairs", "vectors")}
    for kind in ("pairs", "vectors"):
        inputs["retriever"].require_input(kind, inputs[kind], "run train-retriever again")
    others = {kind: store.in_use(kind) for kind in (*TOWERS, "model", "index") if kind != "mmsrec"}
    for kind, artifact in others.items():
        if artifact and artifact.manifest.inputs["vectors"].checksum == inputs["vectors"].manifest.checksum:
            inputs[kind] = artifact
    if "index" not in inputs or inputs["index"].manifest.inputs["retriever"].version != inputs["retriever"].version:
        inputs.pop("index", None)
        inputs.pop("model", None)
    return inputs
