"""The engine's goals, each measured against its baseline in one interleaved run.

python -m benchmarks.gsu_goals clustered        JSON rows of one world, nothing published: what the tests look at
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Goal, run
from benchmarks.gsu_esu import esu_call
from benchmarks.gsu_methods import FASTSCAN, INT8, MERGED, PAPER, PQ4, PQ8, exact_forms, index_of, method
from benchmarks.gsu_worlds import NAMES, World, open_world
from benchmarks.timing import Timing, floors, interleaved
from seminar.kernels import int8, simd
from seminar.retrieval.base import Keys, Probe
from seminar.retrieval.exact import ExactRetriever
from seminar.retrieval.int8 import Int8Retriever
from seminar.retrieval.key_store import KeyStore
from seminar.retrieval.recall import recall_at
from seminar.retrieval.symmetric import (
    CollapsedRetriever,
    gather_codes,
    scan_symmetric,
    symmetric_relevance,
    symmetric_tables,
)

LENGTH, LONG, TOP_K = 10_240, 102_400, 100


def goals(world: World, seconds: float) -> list[Goal]:
    """Rows of the goals table in this world."""
    return [
        *_ratios(world, seconds),
        *_long(world, seconds),
        *_recalls(world),
        *_collapse(world, seconds),
        *_distances(world, seconds),
    ]


def _timed(world: World, keys: Keys, names: list[str], targets: int, seconds: float) -> dict[str, Timing]:
    probe = world.probe(targets)
    calls = {name: partial(form, probe, TOP_K) for name, form in exact_forms(world, keys).items()}
    for name in names:
        calls[name] = partial(index_of(world, name, keys).top_k, probe, TOP_K)
    if targets > 1:
        calls[f"{INT8}, re-scored"] = partial(index_of(world, INT8, keys, rescored=True).top_k, probe, TOP_K)
    return interleaved(calls, seconds)


def _ratios(world: World, seconds: float) -> Iterator[Goal]:
    keys = world.history(LENGTH)
    many = _timed(world, keys, [INT8, PQ4, PQ8, FASTSCAN], 100, seconds)
    one = _timed(world, keys, [INT8, PQ4, PQ8], 1, seconds)

    def times(timed: dict[str, Timing], slow: str, fast: str) -> float:
        return timed[slow].low / timed[fast].low

    at = f"{world.name}, L=10,240, K=100"
    yield Goal(f"{at}: int8, 100 targets, against the paper's exact", times(many, PAPER, INT8), "x", 15)
    yield Goal(f"{at}: int8, 100 targets, against merged float32", times(many, MERGED, INT8), "x", 10)
    yield Goal(f"{at}: int8 re-scored, 100 targets, against the paper's exact", times(many, PAPER, f"{INT8}, re-scored"), "x")
    yield Goal(f"{at}: int8, 1 target, hot, against the paper's exact", times(one, PAPER, INT8), "x", 35)
    yield Goal(f"{at}: int8, 1 target, cold, against the paper's exact", one[PAPER].cold / one[INT8].cold, "x")
    yield Goal(f"{at}: 4-bit PQ, 1 target, against the paper's exact", times(one, PAPER, PQ4), "x", 25)
    yield Goal(f"{at}: 4-bit PQ, 100 targets, against the paper's exact", times(many, PAPER, PQ4), "x", 8)
    yield Goal(f"{at}: 4-bit PQ, 100 targets, against faiss FastScan", times(many, FASTSCAN, PQ4), "x", 2.5)
    yield Goal(f"{at}: 8-bit PQ, 1 target, against the paper's exact", times(one, PAPER, PQ8), "x")
    yield Goal(f"{at}: 8-bit PQ, 100 targets, against the paper's exact", times(many, PAPER, PQ8), "x")
    for name in (PAPER, MERGED, INT8, PQ4, PQ8):
        yield Goal(f"  {name}: 1 target (spread {one[name].high / one[name].low:.2f}x)", one[name].low, "us")
        yield Goal(f"  {name}: 100 targets (spread {many[name].high / many[name].low:.2f}x)", many[name].low / 100, "us a target")


def _long(world: World, seconds: float) -> Iterator[Goal]:
    keys = world.history(LONG)
    for targets, target in ((1, 20.0), (100, None)):
        timed = _timed(world, keys, [INT8], targets, seconds)
        at = f"{world.name}, L=102,400, K=100: int8, {targets} target{'s' if targets > 1 else ''}"
        yield Goal(f"{at}, hot, against the paper's exact", timed[PAPER].low / timed[INT8].low, "x", target)
        yield Goal(f"{at}, cold, against the paper's exact", timed[PAPER].cold / timed[INT8].cold, "x")


def _recalls(world: World) -> Iterator[Goal]:
    keys, exact = world.history(LENGTH), ExactRetriever(world.space)
    requests = [(Probe(probe.query_Td[:32]), keys) for probe in world.probes[:4]]
    raw, again = (recall_at(r, exact, requests, [TOP_K])[0] for r in (method(INT8).make(world), method(INT8).rescored(world)))
    yield Goal(f"{world.name}: int8, recall@100", raw, "", 0.985)
    yield Goal(f"{world.name}: int8 re-scored, recall@100", again, "", 0.999)
    yield Goal(f"{world.name}: int8, bytes a behaviour", Int8Retriever(world.space).bytes_per_behaviour, "B", 64, at_least=False)


def _collapse(world: World, seconds: float) -> Iterator[Goal]:
    """The paper's symmetric look-ups against collapsed tables, tables included, both plain loops of one kind in numba."""
    if world.target_unit_TMd is None:
        return
    (books, codes), keys, targets = world.unrotated_8, world.history(LENGTH), 32
    unit_TMd = world.target_unit_TMd.numpy()[:targets]
    channels = unit_TMd.shape[1]
    target_code = np.stack([books.encode(j, np.ascontiguousarray(unit_TMd[:, j])) for j in range(channels)], 1)
    gate = np.full((targets, channels), 1 / channels, np.float32)
    pairs, code, weight = symmetric_tables(books), gather_codes(codes, keys), keys.weight_LM.numpy()
    alone = np.repeat(target_code[:1, :, None], channels, 2), np.repeat(gate[:1, :, None], channels, 2)
    collapsed_index, relevance = CollapsedRetriever(world.space, books, codes).index(keys), np.empty((1, LENGTH), np.float32)
    calls = {
        "symmetric": lambda: scan_symmetric(pairs, *alone, code, weight, relevance),
        "collapsed": partial(collapsed_index.relevance, world.probe(1)),
    }
    timed = interleaved(calls, seconds)
    exact = ExactRetriever(world.space).index(keys).relevance(world.probe(targets))
    symmetric = _overlap(exact, torch.from_numpy(symmetric_relevance(books, target_code, gate, code, weight)))
    collapsed = _overlap(exact, collapsed_index.relevance(world.probe(targets)))
    yield Goal(
        f"{world.name}: collapsed against symmetric tables, numba", timed["symmetric"].low / timed["collapsed"].low, "x", 4
    )
    what = f"{world.name}: recall@100 of codes, collapsed {collapsed:.3f} less symmetric {symmetric:.3f}"
    yield Goal(what, collapsed - symmetric, "", 0.0)


def _overlap(truth_TL: Tensor, guess_TL: Tensor) -> float:
    """Recall@TOP_K."""
    found = (relevance.topk(TOP_K, dim=1).indices for relevance in (truth_TL, guess_TL))
    pairs = zip(*(indices.tolist() for indices in found), strict=True)
    return float(np.mean([len(set(best) & set(kept)) / TOP_K for best, kept in pairs]))


def _distances(world: World, seconds: float) -> Iterator[Goal]:
    """How far the kernels are from what vpdpbusd can do, and both stages together."""
    floor = floors().scoring_us(LENGTH, world.space.dim)
    keys, probe = world.history(LENGTH), world.probe(100)
    index = Int8Retriever(world.space).index(keys)
    runs, scores = index.packed.runs(100), np.empty((int8.TARGETS, 8192), np.int32)
    code, start = np.ones((int8.TARGETS, world.space.dim), np.int8), np.zeros(int8.TARGETS, np.int32)
    rows = int(runs.rows[0]) // 64 * 64
    tag = simd.TAGS[simd.path()]
    calls = {
        "scoring": lambda: int8.score_block(tag, runs.address[0], rows, code, start, scores),
        "fused": partial(index.top_k, probe, TOP_K),
        "both stages": esu_call(world, keys, probe, TOP_K),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = KeyStore(folder, world.space, "benchmark", max_gib=0.1)
        timed = interleaved(calls | {"served": esu_call(world, keys, probe, TOP_K, store)}, seconds)
        store.close()
    scoring = timed["scoring"].low / int8.TARGETS * LENGTH / rows
    if floor == floor:
        yield Goal(
            f"{world.name}: int8 scoring against the vpdpbusd floor of {floor:.2f} us a target", scoring / floor, "x", 1.3, False
        )
        yield Goal(f"{world.name}: int8 fused top-K against that floor", timed["fused"].low / 100 / floor, "x", 2.0, False)
    both = f"{world.name}: GSU re-scored + fused ESU, 100 targets, L=10,240, K=100"
    yield Goal(f"{both}, float keys at hand", timed["both stages"].low / 1000, "ms", 2.0, False)
    yield Goal(f"{both}, packed keys of a user, candidates looked up", timed["served"].low / 1000, "ms", 2.0, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=NAMES)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--seconds", type=float, default=0.1, help="of measurement a method")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = goals(open_world(arguments.world, arguments.config), arguments.seconds)
    print(json.dumps([asdict(goal) for goal in rows]))


if __name__ == "__main__":
    run(main)
