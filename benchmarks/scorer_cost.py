"""What a target costs SEMINAR as it is served and DIN over the full history, in turns on one core.

    python -m benchmarks.scorer_cost WORKDIR [--seconds 5]

WORKDIR holds a trained SEMINAR with its vectors and pairs. DIN is drawn at random with the same shapes, heads and channels: what
it costs does not depend on what it learned. Both are timed as `seminar compare` times its models (`seminar/compare/cost.py`).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.common import Goal, publish, run
from benchmarks.timing import interleaved
from seminar.artifacts import Store
from seminar.baselines.base import Baseline
from seminar.channels import ChannelEncoder, VectorTables, unit_tables
from seminar.compare.cost import TARGETS, forward, request_batches, served
from seminar.models import build_model
from seminar.ranker import load_ranker
from seminar.sequences import read_histories

LENGTHS = (200, 600, 1000, 4000)
USERS = 4
"""Requests of so many users in turn, or the caches would know one user by heart."""
LEAST = {4000: 10.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    publish("scorer_cost", list(goals(Store(arguments.workdir), arguments.seconds)))


@torch.inference_mode()
def goals(store: Store, seconds: float) -> Iterator[Goal]:
    """Microseconds a target of both, and their ratio."""
    pairs, vectors = store.open("pairs"), store.open("vectors")
    ranker = load_ranker(store.open("model"), vectors)
    config = ranker.config.model_copy(update={"kind": "din"})
    din = build_model(config, VectorTables.load(vectors), torch.Generator().manual_seed(0)).eval()
    assert isinstance(din, Baseline)
    assert isinstance(ranker.channels, ChannelEncoder)
    tables = unit_tables(ranker.channels)
    for model in (ranker, din):
        del model.channels
        model.channels = tables  # type: ignore[bad-assignment]
    histories = read_histories(pq.read_table(pairs.file("shards/part-00000.parquet")))
    for length in LENGTHS:
        batches = request_batches(histories, length)[:USERS]
        calls = {"SEMINAR": [served(ranker, batch) for batch in batches], "DIN": [forward(din, batch) for batch in batches]}
        timing = interleaved({name: lambda own=own: [call() for call in own] for name, own in calls.items()}, seconds)
        cost = {name: took.per(USERS * TARGETS).median for name, took in timing.items()}
        ratio = cost["DIN"] / cost["SEMINAR"]
        yield Goal(f"DIN's cost a target over SEMINAR's as served, L = {length:,}, one core", ratio, "x", LEAST.get(length))
        for name, took_us in cost.items():
            yield Goal(f"  {name}", took_us, "us a target")


if __name__ == "__main__":
    run(main)
