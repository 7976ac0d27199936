"""Fine-tuning at L=1000, d=64 on this machine: pairs/s, where a step's time goes, and the SEMINAR authors' form beside it.

    python -m benchmarks.train [--config configs/complete_journey.toml] [--workers 2] [--quick]

Real histories of at least L behaviours; the first run prepares and embeds them, about two minutes. A scored pair is one
(request, target); all targets of a request share its encoded history. A step is 256 requests: forward, backward, gradients summed
over the workers, update. Workers are processes of one thread that share the lanes, as `seminar finetune` runs them.

The authors' form (`benchmarks/authors_form.py`) scores one candidate after another and projects the history again for each:
forward and backward, no update, on one core, in turns with ours on one core on the same requests. Their public logs show about
500 pairs/s on a CPU at this size, in evaluation alone.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.authors_form import loss_of_candidate
from benchmarks.common import Goal, peak_memory_mib, publish, run
from seminar.artifacts import Store
from seminar.batching import Batch, Request, collate
from seminar.channels import VectorTables
from seminar.config import FinetuneConfig, ModelConfig, load_settings
from seminar.ranker import Ranker
from seminar.schema import CTR, NONE, PSR
from seminar.sequences import Histories
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards
from seminar.train.training import Optimisers, train_step
from workflows import embed, prepare
from workflows.runtime import HUGE_PAGES, absolute

LENGTH, REQUESTS = 1000, 256
TOP_K, TARGETS, PER_LANE = (50, 200), (1, 10, 100), (16, 64)
"""What is measured: K of the model, targets a request, requests a lane."""
AUTHORS_PAIRS_PER_S = 500.0


@dataclass(frozen=True)
class Source:
    """Where histories and vectors lie."""

    workdir: Path

    def read(self) -> tuple[Histories, VectorTables]:
        store = Store(self.workdir)
        return read_shards(shard_paths(store.open("pairs"))), VectorTables.load(store.open("vectors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="128 requests a step, 100 targets alone, one repetition")
    arguments = parser.parse_args()
    settings = absolute(load_settings(arguments.config))
    store = Store(settings.workdir)
    prepare.run(settings, store)
    embed.run(settings, store)
    os.environ.setdefault(*HUGE_PAGES)
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.workers, Source(settings.workdir), arguments.quick, Path(folder))
        mp.spawn(_worker, work, arguments.workers)
        goals = [Goal(**row) for row in json.loads((Path(folder) / "goals.json").read_text())]
    publish("train", goals)


def _worker(rank: int, workers: int, source: Source, quick: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=workers)
    histories, tables = source.read()
    requests, repeats, targets = (128, 1, TARGETS[-1:]) if quick else (REQUESTS, 5, TARGETS)
    goals = []
    for top_k in TOP_K:
        for count in targets:
            for per_lane in PER_LANE if count == 100 else PER_LANE[:1]:
                lanes = Lanes(histories, tables, requests, per_lane, count, top_k)
                goals += lanes.measure(rank, workers, repeats)
        if not rank:
            goals += beside_the_authors(histories, tables, top_k, 1 if quick else 5)
        dist.barrier()
    if not rank:
        goals.append(Goal("peak memory of a worker", peak_memory_mib(), "MiB"))
        (folder / "goals.json").write_text(json.dumps([asdict(goal) for goal in goals]))
    dist.destroy_process_group()


@dataclass(frozen=True)
class Lanes:
    """One size of a training step."""

    histories: Histories
    tables: VectorTables
    requests: int
    per_lane: int
    targets: int
    top_k: int

    def measure(self, rank: int, workers: int, repeats: int) -> list[Goal]:
        """Median step over `repeats`, and where the time of a worker goes."""
        lanes = self.requests // self.per_lane
        config = FinetuneConfig(lanes=lanes, requests_per_lane=self.per_lane, max_history=LENGTH)
        ranker, optimisers = trained(self.tables, self.top_k, config)
        drawn = enumerate(draw(self.histories, self.tables, lanes, self.per_lane, self.targets))
        batches = {lane: batch for lane, batch in drawn if lane % workers == rank}
        seconds, busy, pairs = [], [], 0
        for step in range(repeats + 1):  # the first warms up
            dist.barrier()
            began, worked = time.perf_counter(), time.process_time()
            pairs = train_step(ranker, batches, optimisers, step=step, config=config, group=dist.group.WORLD).pairs
            seconds.append(time.perf_counter() - began)
            worked = torch.tensor(time.process_time() - worked)
            dist.all_reduce(worked)
            busy.append(float(worked) / workers)
        size = f"{self.requests} requests x {self.targets} targets, {self.per_lane} requests a lane"
        name = f"training, {size}, L={LENGTH}, K={self.top_k}, d=64"
        target = 100 * AUTHORS_PAIRS_PER_S if self.targets == 100 else None
        shares = parts(ranker, optimisers, batches, config)
        total = sum(shares.values())
        return [
            Goal(f"{name}, {workers} workers: scored pairs/s", pairs / float(np.median(seconds[1:])), "pairs/s", target),
            Goal("  by CPU time, where other programs share the cores", pairs / float(np.median(busy[1:])), "pairs/s"),
            *(Goal(f"  share of {part}", value / total, "of the step") for part, value in shares.items()),
        ]


def trained(tables: VectorTables, top_k: int, config: FinetuneConfig) -> tuple[Ranker, Optimisers]:
    """A fresh ranker and its optimisers, in training."""
    ranker = Ranker.build(ModelConfig(top_k=top_k), tables, torch.Generator().manual_seed(0)).train()
    ranker.distillation = config.distillation
    return ranker, Optimisers(ranker, config)


def beside_the_authors(histories: Histories, tables: VectorTables, top_k: int, repeats: int) -> list[Goal]:
    """One core, in turns: our step of 16 requests x 100 targets, and the authors' form on 3 targets of the same requests."""
    config = FinetuneConfig(lanes=1, requests_per_lane=PER_LANE[0], max_history=LENGTH)
    ranker, optimisers = trained(tables, top_k, config)
    (batch,) = draw(histories, tables, 1, PER_LANE[0], 100)
    candidates = 3

    def ours() -> float:
        return train_step(ranker, {0: batch}, optimisers, step=0, config=config).pairs

    def theirs() -> float:
        optimisers.zero()
        for number in range(candidates):
            (loss_of_candidate(ranker, batch, number) / candidates).backward()
        return candidates * len(batch.item_BT)

    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        for function in (ours, theirs):
            began = time.thread_time()
            rates[function.__name__].append(function() / (time.thread_time() - began))
    own, form = (float(np.median(rates[name][1:])) for name in ("ours", "theirs"))
    name = f"one core, L={LENGTH}, K={top_k}, 16 requests x 100 targets"
    return [
        Goal(f"{name}: ours, scored pairs/s", own, "pairs/s"),
        Goal(f"{name}: the authors' form, scored pairs/s", form, "pairs/s"),
        Goal(f"{name}: ours to the authors' form", own / form, "times", 50.0),
    ]


def draw(histories: Histories, tables: VectorTables, lanes: int, per_lane: int, targets: int) -> Iterator[Batch]:
    """Lanes of requests at the end of histories with at least LENGTH behaviours; targets are random items."""
    rng = np.random.default_rng(0)
    long = np.flatnonzero(histories.lengths >= LENGTH)
    for _ in range(lanes):
        chosen = []
        for row in rng.choice(long, per_lane):
            end = int(rng.integers(LENGTH, histories.lengths[row] + 1))
            query = np.full(targets, rng.integers(tables.num_queries) if tables.num_queries else NONE)
            chosen.append(
                Request(
                    row=int(row),
                    end=end,
                    time_ms=int(histories.time_ms[histories.offsets[row] + end - 1]) + 3_600_000,
                    item_T=rng.integers(0, tables.num_items, targets),
                    query_T=query,
                    label_T=(rng.random(targets) < 0.2).astype(np.float32),
                    task_T=np.where(query == NONE, CTR, PSR),
                )
            )
        yield collate(histories, chosen, LENGTH)


def parts(ranker: Ranker, optimisers: Optimisers, batches: dict[int, Batch], config: FinetuneConfig) -> dict[str, float]:
    """Seconds by part of one lane's forward, of its backward, and of the update."""
    seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[part] += time.perf_counter() - began

    def wrapped(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with timed(part):
                return function(*args, **kwargs)

        return call

    names = {"encode": "channels", "_keep": "GSU", "cross": "cross features", "pooled": "taste", "rank": "ESU and heads"}
    for method, part in names.items():
        setattr(ranker, method, wrapped(part, getattr(ranker, method)))
    with timed("forward"):
        loss = ranker.loss(next(iter(batches.values())))["total"]
    with timed("backward"):
        loss.backward()
    with timed("update, a step's share"):
        optimisers.exchange(None)
        optimisers.step(0)
    seconds["update, a step's share"] /= len(batches)
    for method in names:
        delattr(ranker, method)
    seconds["losses"] = seconds.pop("forward") - sum(seconds[part] for part in names.values())
    return dict(seconds)


if __name__ == "__main__":
    run(main)
