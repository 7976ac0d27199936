"""One training step at L=1000, K=200, 256 requests, d=64 on this machine: pairs/s, peak memory, share of time by part.

    python -m benchmarks.train [--config configs/complete_journey.toml] [--quick]

Real histories of at least L behaviours; the first run prepares and embeds them, about two minutes. A scored pair is one
(request, target); all targets of a request share its encoded history. The reference, about 500 pairs/s, is what the SEMINAR
authors' public logs show on a CPU at this size, in evaluation alone.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.common import Goal, peak_memory_mib, publish, run
from seminar.artifacts import Store
from seminar.batching import Batch, Request, collate
from seminar.channels import VectorTables
from seminar.config import FinetuneConfig, ModelConfig, load_settings
from seminar.ranker import Ranker
from seminar.schema import CTR, NONE, PSR
from seminar.sequences import Histories, read_histories
from seminar.train.training import Optimisers, train_step
from workflows import embed, prepare
from workflows.runtime import absolute

LENGTH, TOP_K, REQUESTS, PER_LANE = 1000, 200, 256, 16
AUTHORS_PAIRS_PER_S = 500.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="64 requests a step and one repetition")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = absolute(load_settings(arguments.config))
    store = Store(settings.workdir)
    pairs = prepare.run(settings, store)
    tables = VectorTables.load(embed.run(settings, store))
    shards = [pq.read_table(pairs.file(name)) for name in sorted(pairs.manifest.files) if name.startswith("shards/")]
    histories = read_histories(pa.concat_tables(shards))
    requests, repeats = (64, 1) if arguments.quick else (REQUESTS, 3)
    goals = [goal for targets in (1, 10, 100) for goal in measure(histories, tables, requests, targets, repeats)]
    publish("train", [*goals, Goal("peak memory of the process", peak_memory_mib(), "MiB")])


def measure(histories: Histories, tables: VectorTables, requests: int, targets: int, repeats: int) -> list[Goal]:
    """Median step over `repeats`, and where its time goes."""
    config = FinetuneConfig(lanes=requests // PER_LANE, requests_per_lane=PER_LANE, max_history=LENGTH)
    ranker = Ranker.build(ModelConfig(top_k=TOP_K), tables, torch.Generator().manual_seed(0)).train()
    ranker.distillation = config.distillation
    optimisers = Optimisers(ranker, config)
    batches = dict(enumerate(draw(histories, tables, requests, targets)))
    seconds = []
    for step in range(repeats + 1):  # the first warms up
        began = time.perf_counter()
        pairs = train_step(ranker, batches, optimisers, step=step, config=config).pairs
        seconds.append(time.perf_counter() - began)
    rate = pairs / float(np.median(seconds[1:]))
    name = f"training, {requests} requests x {targets} targets, L={LENGTH}, K={TOP_K}, d=64"
    target = 100 * AUTHORS_PAIRS_PER_S if targets == 100 else None
    shares = parts(ranker, optimisers, batches, config)
    total = sum(shares.values())
    return [
        Goal(f"{name}: scored pairs/s", rate, "pairs/s", target),
        *(Goal(f"  share of {part}", value / total, "of the step") for part, value in shares.items()),
    ]


def draw(histories: Histories, tables: VectorTables, requests: int, targets: int) -> Iterator[Batch]:
    """Lanes of PER_LANE requests at the end of histories with at least LENGTH behaviours; targets are random items."""
    rng = np.random.default_rng(0)
    long = np.flatnonzero(histories.lengths >= LENGTH)
    for _ in range(requests // PER_LANE):
        chosen = []
        for row in rng.choice(long, PER_LANE):
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

    names = {"encode": "channels", "relevance": "GSU scoring", "cross": "cross features", "rank": "ESU and heads"}
    for method, part in names.items():
        setattr(ranker, method, wrapped(part, getattr(ranker, method)))
    with timed("forward"):
        loss = ranker.loss(batches[0])["total"]
    with timed("backward"):
        loss.backward()
    with timed("update, a step's share"):
        optimisers.exchange(None)
        optimisers.step(0)
    seconds["update, a step's share"] /= len(batches)
    for method in names:
        delattr(ranker, method)
    seconds["top-K and losses"] = seconds.pop("forward") - sum(seconds[part] for part in names.values())
    return dict(seconds)


if __name__ == "__main__":
    run(main)
