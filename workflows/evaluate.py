"""evaluate: the current model beside the floors on held-out requests -> report.json, report.md, plots and the rows behind them.

    part of a shard's users -> _rows/<shard>-<part>.*      one row a scored list; a rerun scores the missing parts
    all rows                -> figures with intervals      exact: rows hold counts, not averages

The scorer is loaded once an actor. Parts do not depend on the number of workers, and neither does any figure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import ray.data
import torch

from seminar.artifacts import Artifact, Draft, Store
from seminar.channels import ChannelEncoder, unit_tables
from seminar.codes.codebook import Stamp, load_codes
from seminar.config import EvaluateConfig, RayConfig, Settings
from seminar.evaluate.code_recall import code_recall
from seminar.evaluate.evaluation import Rows, evaluate_histories
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import ScoreFn, floors, held_out_pairs, ranking_request
from seminar.evaluate.report import Facts, headline, protocol_sentence, table, write_report
from seminar.evaluate.summary import summarise
from seminar.models import load_model
from seminar.progress import Progress
from seminar.ranker import load_ranker
from seminar.retrieval.recall import Recall
from seminar.retrieval.regime import OVERFETCH
from seminar.sequences import Histories, read_histories
from workflows.runtime import checked, guarded, ray_session

USERS_A_PART = 128
MODEL = "model"
RECALL_REQUESTS = 32
RECALL_KS = (10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Job:
    """What an actor needs: artefacts on storage every node can read, and where rows go."""

    root: Path
    versions: dict[str, str]
    config: EvaluateConfig
    full_share: float
    rows: Path
    threads: int
    device: str

    def open(self, kind: str) -> Artifact:
        return Store(self.root).open(kind, self.versions[kind])


class ScoreParts:
    """A Ray Data actor: scores parts of shards with the model and the floors, and leaves their rows in files."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return guarded(self._score, row)

    def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        shard, part, parts = row["shard"], row["part"], row["parts"]
        pool, scorers = self._loaded
        histories = _read_shard(self._job.open("pairs").file(f"shards/{shard}.parquet"))
        users = np.arange(part, len(histories), parts)
        rows = evaluate_histories(histories, pool, scorers, self._job.config, self._job.full_share, users)
        rows.write(self._job.rows, _stem(shard, part))
        return {"users": len(users)}

    @cached_property
    def _loaded(self) -> tuple[ItemPool, dict[str, ScoreFn]]:
        torch.set_num_threads(self._job.threads)
        pool = ItemPool.of(pq.read_table(self._job.open("pairs").file("items.parquet")))
        device = torch.device(self._job.device)
        model = load_model(self._job.open("model"), self._job.open("vectors")).to(device)
        return pool, {MODEL: lambda batch: model.score(batch.to(device)), **floors(pool)}


def run(settings: Settings, store: Store) -> Artifact:
    """Evaluate the current model on the current pairs and publish a `report`; the same inputs find the finished one."""
    inputs = _inputs(store)
    config = settings.evaluate.protocol
    version = store.version_of("report", inputs, config)
    if store.exists("report", version):
        store.set_current("report", version)
        return store.open("report", version)
    draft = store.draft("report", inputs, config)
    rows = _score_all(settings, store, inputs, draft)
    lines = summarise([rows], np.random.default_rng(settings.evaluate.seed))
    metrics = inputs["pairs"].manifest.metrics
    data = {name: metrics[name] for name in ("users", "behaviours", "items", "origins") if name in metrics}
    facts = Facts(
        settings.evaluate, {name: artifact.version for name, artifact in inputs.items()} | {"report": version}, data, rows.skipped
    )
    recall = _recall(settings, inputs) if "codebooks" in inputs else []
    rows.write(draft.path)
    write_report(draft.path, facts, lines, _curves(store, inputs["model"]), recall)
    print(
        f"evaluate: {protocol_sentence(settings.evaluate)}",
        *table(headline(lines), ("HIT@10", "NDCG@10", "MRR", "AUC")),
        sep="\n",
    )
    figures = {line["scorer"]: {name: figure["value"] for name, figure in line["metrics"].items()} for line in headline(lines)}
    return store.publish(draft, {"query_origin": headline(lines)[0]["query_origin"], "sampled": figures})


def _inputs(store: Store) -> dict[str, Artifact]:
    """Current model, vectors, pairs, and the codebooks if they were made for this model and these vectors."""
    inputs = {kind: store.open(kind) for kind in ("model", "vectors", "pairs")}
    inputs["vectors"].require_input("pairs", inputs["pairs"], "run embed again")
    codebooks = store.in_use("codebooks")
    made_from = codebooks.manifest.inputs if codebooks else {}
    if codebooks and all(made_from[kind].checksum == inputs[kind].manifest.checksum for kind in ("model", "vectors")):
        inputs["codebooks"] = codebooks
    return inputs


def _score_all(settings: Settings, store: Store, inputs: dict[str, Artifact], draft: Draft) -> Rows:
    """Rows of all users; parts that an interrupted run has left are not scored again."""
    pairs, config = inputs["pairs"], settings.evaluate
    folder = draft.path / "_rows"
    folder.mkdir(exist_ok=True)
    shards = sorted(Path(name).stem for name in pairs.manifest.files if name.startswith("shards/"))
    num_users = int(pairs.manifest.metrics["users"])
    parts = max(1, -(-num_users // (max(len(shards), 1) * USERS_A_PART)))
    todo = [{"shard": shard, "part": part, "parts": parts} for shard in shards for part in range(parts)]
    missing = [row for row in todo if not (folder / f"{_stem(row['shard'], row['part'])}.json").exists()]
    job = Job(
        root=store.root.resolve(),
        versions={kind: inputs[kind].version for kind in ("model", "vectors", "pairs")},
        config=config,
        full_share=min(config.full_ranking_users / max(num_users, 1), 1.0),
        rows=folder.resolve(),
        threads=max(int(settings.ray.cpus_per_worker), 1),
        device="cuda" if settings.ray.gpus_per_worker else "cpu",
    )
    done = round(num_users * (1 - len(missing) / max(len(todo), 1)))
    with Progress("evaluate: score held-out requests", num_users, "users", done=done) as progress:
        if missing:
            with ray_session(settings.ray):
                for users in _map(job, missing, settings.ray, config.num_workers):
                    progress.advance(users)
    return Rows.concat([Rows.read(folder, _stem(row["shard"], row["part"])) for row in todo])


def _map(job: Job, parts: list[dict[str, Any]], config: RayConfig, num_workers: int) -> Iterator[int]:
    dataset = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
        cast(Any, ScoreParts),
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(num_workers, len(parts))),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None,
    )
    for row in checked(dataset.iter_rows()):
        yield int(row["users"])


def _recall(settings: Settings, inputs: dict[str, Artifact]) -> list[Recall]:
    """Recall of the codes on the longest histories of the first shard: short ones are found whole by any method."""
    codes = load_codes(inputs["codebooks"].file("codebooks.safetensors"))
    ranker = load_ranker(inputs["model"], inputs["vectors"])
    assert isinstance(ranker.channels, ChannelEncoder)
    Stamp(inputs["codebooks"].version, ranker.channels.fingerprint()).require(codes[0].stamp, "model and codebooks")
    shards = sorted(name for name in inputs["pairs"].manifest.files if name.startswith("shards/"))
    histories = _read_shard(inputs["pairs"].file(shards[0]))
    pool = ItemPool.of(pq.read_table(inputs["pairs"].file("items.parquet")))
    pairs = sorted(held_out_pairs(histories, settings.evaluate), key=lambda pair: (-pair.start, pair.row))
    drawn = [ranking_request(histories, pool, pair, settings.evaluate) for pair in pairs[:RECALL_REQUESTS]]
    requests = [request for request, _ in filter(None, drawn)]
    overfetch = settings.serve.overfetch or OVERFETCH["pq"]
    return code_recall(ranker, unit_tables(ranker.channels), codes, histories, requests, RECALL_KS, overfetch)


def _curves(store: Store, model: Artifact) -> dict[str, Any]:
    stages = {"fine-tuning": model}
    if "psu" in model.manifest.inputs:
        stages = {"pretraining": store.open("psu", model.manifest.inputs["psu"].version), **stages}
    return {name: pq.read_table(artifact.file("curve.parquet")) for name, artifact in stages.items()}


@lru_cache(maxsize=1)
def _read_shard(path: Path) -> Histories:
    return read_histories(pq.read_table(path))


def _stem(shard: str, part: int) -> str:
    return f"{shard}-{part:05d}"
