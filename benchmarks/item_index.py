"""How much faster than exact search is the item index on a million items, and what does it miss?

    python -m benchmarks.item_index [--config configs/retriever.toml] [--items 1000000] [--quick]

Item vectors are those of the trained item tower. The catalogue is filled up to a million by recombining real contents: the text
and photograph of one item with the attributes of another of its category and the popularity of a third. Users are real, and ask
what they asked last. Searched on one core, one user at a time, exact search and index in turns, by the CPU time of the thread, so
that other programs do not count; recall@100 counts what exact search could have returned.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy import ndarray

from benchmarks.common import Goal, publish, run
from seminar.artifacts import Store
from seminar.candidates.full_ranking import ask
from seminar.candidates.index import ItemIndex, recall
from seminar.candidates.mmsrec import MMSRec
from seminar.candidates.tower import item_vectors
from seminar.channels import VectorTables
from seminar.config import IndexConfig, load_settings
from seminar.evaluate.protocol import held_out_pairs
from seminar.sequences import read_histories
from seminar.train.retriever import load_retriever
from workflows.runtime import absolute

TOP = 100
GRID: dict[str, tuple[int, ...]] = {"hnsw": (256, 512, 1024), "ivf_pq": (64, 256, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/retriever.toml"))
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="the catalogue as it is")
    own = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    settings = absolute(load_settings(own.config))
    store = Store(settings.workdir)
    retriever, vectors = store.open("retriever"), store.open("vectors")
    tower = load_retriever(retriever, vectors)
    assert isinstance(tower, MMSRec)
    real_Id = item_vectors(tower)
    extra = 0 if own.quick else max(own.items - len(real_Id), 0)
    item_Id = np.concatenate([real_Id, recombined(tower, VectorTables.load(vectors), extra)])
    pairs = store.open("pairs")
    histories = read_histories(pq.read_table(pairs.file("shards/part-00000.parquet")))
    asked = held_out_pairs(histories, settings.evaluate)[: own.users]
    user_Nd = ask(tower, histories, asked)
    publish("item_index", list(goals(item_Id, user_Nd, settings.index, f"{len(item_Id):,} items, d = {item_Id.shape[1]}")))


@torch.no_grad()
def recombined(tower: MMSRec, tables: VectorTables, count: int, block: int = 8192) -> Float[ndarray, "N d"]:
    """Vectors of `count` items that no catalogue has, made of contents that one has."""
    rng = np.random.default_rng(0)
    # Items without a category, -1, are a category too.
    category_I = tables.category_index + 1
    by_category = np.argsort(category_I, kind="stable")
    first = np.searchsorted(category_I[by_category], np.arange(category_I.max() + 2))
    parts = [item_vectors(tower, np.empty(0, np.int64))]
    for begin in range(0, count, block):
        size = min(block, count - begin)
        shown = rng.integers(len(by_category), size=size)
        category = category_I[shown]
        other, liked = (by_category[rng.integers(first[category], first[category + 1])] for _ in range(2))
        unit, present = tower.channels.unit_items(torch.from_numpy(shown))
        of_other, has_other = tower.channels.unit_items(torch.from_numpy(other))
        unit[:, 2], present[:, 2] = of_other[:, 2], has_other[:, 2]
        vector = torch.nn.functional.normalize(tower.fusion.items(unit, present), dim=-1) * tower.scale
        parts.append(torch.cat([vector, tower.prior(torch.from_numpy(liked))[:, None]], 1).numpy())
    return np.concatenate(parts)


def goals(item_Id: Float[ndarray, "I d"], user_Nd: Float[ndarray, "N d"], config: IndexConfig, where: str) -> Iterator[Goal]:
    exact, exact_ms = ItemIndex.build(item_Id, config.model_copy(update={"kind": "flat"})), 0.0
    for kind, efforts in GRID.items():
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        began = time.perf_counter()
        built = ItemIndex.build(item_Id, config.model_copy(update={"kind": kind}))
        seconds = time.perf_counter() - began
        faiss.omp_set_num_threads(1)
        yield Goal(f"{kind}, {where}: built in", seconds, "s on all cores")
        yield Goal(f"{kind}: bytes an item", faiss.serialize_index(built.faiss).nbytes / len(item_Id), "B")
        for effort in efforts:
            index = ItemIndex(built.kind, effort, built.length_squared, built.faiss)
            slow, fast = in_turns(user_Nd, lambda user: exact.search(user, TOP), lambda user, of=index: of.search(user, TOP))
            found = float(recall(item_Id, user_Nd, index.search(user_Nd, TOP)[0]).mean())
            default = " (default)" if effort == config.effort else ""
            claimed = kind == "hnsw" and effort == config.effort
            yield Goal(f"{kind}, effort {effort}{default}: recall@{TOP}", found, "", 0.99 if claimed else None)
            speed = slow / fast
            yield Goal(f"{kind}, effort {effort}{default}: exact search takes as long", speed, "times", 10.0 if claimed else None)
            exact_ms = slow * 1e3
            yield Goal(f"{kind}, effort {effort}{default}: one user", fast * 1e3, "ms")
    yield Goal(f"exact, {where}: one user", exact_ms, "ms")


def in_turns(
    user_Nd: Float[ndarray, "N d"], first: Callable[[ndarray], object], second: Callable[[ndarray], object]
) -> tuple[float, float]:
    """Median CPU seconds a user of two ways to search, one after the other for each user."""
    seconds = np.empty((len(user_Nd), 2))
    for i, user in enumerate(user_Nd[:, None]):
        for j, search in enumerate((first, second)):
            began = time.thread_time()
            search(user)
            seconds[i, j] = time.thread_time() - began
    median = np.median(seconds, axis=0)
    return float(median[0]), float(median[1])


if __name__ == "__main__":
    run(main)
