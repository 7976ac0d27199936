"""The retrieval engine, measured: recall, time and bytes of every method, on real PSU embeddings and two synthetic regimes.

    python -m benchmarks.gsu [--quick] [--worlds gaussian clustered journey] [--config configs/complete_journey.toml]
    seminar bench gsu ...    (the same)

One thread, thread CPU time, methods in turns; a ratio compares 20th percentiles of one interleaved run. Wrappers are included:
a call takes a Probe and gives a TopK. "Hot" is the second to fifth call of a burst, "cold" the first, after others have used the
caches. The real world needs the trained model of --config and is left out, with a sentence, where it is missing.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import publish, run
from benchmarks.gsu_goals import goals
from benchmarks.gsu_methods import INT8, METHODS, PQ4, PQ8, SIMHASH, exact_forms, index_of
from benchmarks.gsu_report import write_report
from benchmarks.gsu_worlds import NAMES, World, open_world
from benchmarks.timing import interleaved
from seminar.errors import ArtifactError
from seminar.retrieval.base import Index, Keys, Probe
from seminar.retrieval.exact import ExactRetriever, MergedIndex
from seminar.retrieval.recall import found_share
from seminar.retrieval.rescored import RescoredIndex

LENGTH, TOP_K = 10_240, 100
GROWING = (INT8, PQ8, PQ4, SIMHASH)
"""Methods that are followed to histories of a million."""


@dataclass(frozen=True)
class Row:
    """One method in one world. Times in microseconds a target; recall@K of exact, alone and re-scored."""

    world: str
    method: str
    bytes_per_behaviour: float
    length: int
    recall: float
    recall_rescored: float
    us_1: float
    us_1_cold: float
    us_100: float
    us_100_rescored: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the time a measurement, no histories beyond 102,400")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 0.05 if arguments.quick else 0.5
    rows, growth, measured = [], [], []
    for world in worlds(arguments.worlds, arguments.config):
        rows += list(compare(world, seconds))
        measured += goals(world, seconds)
        if world.name == "clustered":
            growth = list(against_length(world, seconds, [1_000, 10_000, 100_000, *([] if arguments.quick else [1_000_000])]))
    publish("gsu", measured)
    write_report([asdict(row) for row in rows], growth)


def worlds(names: Sequence[str], config: Path) -> Iterator[World]:
    for name in names:
        try:
            yield open_world(name, config)
        except ArtifactError as error:
            print(f"left out {name}: {error}")


def compare(world: World, seconds: float) -> Iterator[Row]:
    """All methods and the exact forms at L = 10,240, K = 100."""
    keys = world.history(LENGTH)
    exact = ExactRetriever(world.space).index(keys)
    probes = [Probe(probe.query_Td[:32]) for probe in world.probes[:4]]
    truths = [exact.relevance(probe) for probe in probes]
    one, many = world.probe(1), world.probe(100)
    calls_1, calls_100 = {}, {}
    recalls, widths = {}, {}
    for method in METHODS:
        began = time.perf_counter()
        raw = method.make(world)
        trained = time.perf_counter() - began
        index = raw.index(keys)
        seconds_a_history = time.perf_counter() - began - trained
        print(f"{world.name}: {method.name}: {trained:.1f} s to train, {seconds_a_history:.2f} s to index 10,240 behaviours")
        again = RescoredIndex(index, MergedIndex(world.space.merged(keys)), method.overfetch)
        widths[method.name] = raw.bytes_per_behaviour
        recalls[method.name] = [mean_recall(searched, probes, truths) for searched in (index, again)]
        calls_1[method.name] = partial(index.top_k, one, TOP_K)
        calls_100[method.name] = partial(index.top_k, many, TOP_K)
        calls_100[f"{method.name}, re-scored"] = partial(again.top_k, many, TOP_K)
    for name, form in exact_forms(world, keys).items():
        calls_1[name], calls_100[name] = partial(form, one, TOP_K), partial(form, many, TOP_K)
        widths[name], recalls[name] = float(4 * world.space.dim * (4 if "paper" in name else 1)), [1.0, 1.0]
    single = interleaved(calls_1, seconds)
    batch = {name: timing.per(100) for name, timing in interleaved(calls_100, seconds).items()}
    for name, width in widths.items():
        again = batch.get(f"{name}, re-scored")
        yield Row(
            world=world.name,
            method=name,
            bytes_per_behaviour=width,
            length=LENGTH,
            recall=recalls[name][0],
            recall_rescored=recalls[name][1],
            us_1=single[name].low,
            us_1_cold=single[name].cold,
            us_100=batch[name].low,
            us_100_rescored=again.low if again else math.nan,
        )


def mean_recall(index: Index, probes: Sequence[Probe], truths: Sequence[Tensor]) -> float:
    """Recall@K of an index over all targets of the probes."""
    shares = [found_share(truth, index.top_k(probe, TOP_K)) for probe, truth in zip(probes, truths, strict=True)]
    return torch.cat(shares).mean().item()


def against_length(world: World, seconds: float, lengths: Sequence[int]) -> Iterator[dict[str, float | str]]:
    """Microseconds of one target against the length of the history, each method alone with its caches."""
    probe = world.probe(1)
    for length in lengths:
        keys: Keys = world.history(length)
        calls = {name: partial(form, probe, TOP_K) for name, form in exact_forms(world, keys).items()}
        for name in GROWING:
            calls[name] = partial(index_of(world, name, keys).top_k, probe, TOP_K)
        for name, timing in interleaved(calls, seconds).items():
            yield {"method": name, "length": length, "us": timing.low, "us_cold": timing.cold}


if __name__ == "__main__":
    run(main)
