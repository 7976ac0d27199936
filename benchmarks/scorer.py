"""What a score request costs a replica before and after HTTP: history, translation, both stages, on one core.

    python -m benchmarks.scorer BUNDLE [--seconds 4]

BUNDLE: folder of a published bundle. Histories are planted from its catalogue with the lengths below, items by a long-tailed law,
in a store of their own; 100 targets a request, the user seen before. Compared in turns, CPU time of one thread: the compiled
scorer with its cache of users, the torch ranker over what is read and translated at every request, and a user's first version,
torch attention over the whole history (`serve_rivals.FullAttention`, its history ready in memory).
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Goal, publish, run
from benchmarks.serve_rivals import FullAttention
from benchmarks.timing import Timing, interleaved
from seminar.bundle import Bundle
from seminar.client import api
from seminar.history.lmdb_store import LMDBHistoryStore
from seminar.history_search import key_space
from seminar.retrieval.key_store import open_shared
from seminar.schema import NONE
from seminar.scorer import TwoStageScorer
from seminar.sequences import Exposures, Histories
from serve.rows import Live, prepare
from serve.users import UserCache

LENGTHS = (600, 4000, 10_240, 102_400)
TARGETS = 100
DAYS = 700
END_MS = 1_600_000_000_000
MOST_MS = {600: 1.3, 4000: 2.0}
"""Goals of the whole, in ms; the others are goals over the rival."""
LEAST_RATIO = {10_240: 10.0, 102_400: 50.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.load(arguments.bundle)
    with tempfile.TemporaryDirectory() as folder:
        goals = [goal for length in LENGTHS for goal in World.of(bundle, Path(folder), length).goals(arguments.seconds)]
    publish("scorer", goals)


@dataclass(frozen=True)
class World:
    """One user of so many behaviours, and everything that can score its request."""

    store: LMDBHistoryStore
    compiled: Live
    plain: Live
    request: api.ScoreRequest
    length: int

    @classmethod
    def of(cls, bundle: Bundle, folder: Path, length: int) -> "World":
        rng = np.random.default_rng(length)
        store = LMDBHistoryStore(folder / f"history-{length}", max_gib=1)
        store.load(planted(store, bundle, rng, length))
        keys = open_shared(folder / f"keys-{length}", key_space(bundle), bundle.version, max_gib=1)
        compiled = Live.of(TwoStageScorer(bundle, key_store=keys), store, UserCache(1 << 30), ready=True)
        plain = Live.of(TwoStageScorer(bundle, key_store=keys, compiled=False), store, UserCache(0), ready=False)
        items = [{"item_id": bundle.item_ids[row]} for row in popular(rng, bundle, TARGETS).tolist()]
        request = api.ScoreRequest.model_validate({"user_id": "u", "targets": items, "time_ms": END_MS})
        return cls(store, compiled, plain, request, length)

    def goals(self, seconds: float) -> Iterator[Goal]:
        """Figures of this length, compared in turns."""
        score = {"compiled": partial(self.score, self.compiled), "torch": partial(self.score, self.plain)}
        rivals, stages = self.rivals(), self.stages()
        timing = interleaved({**score, **rivals, **stages}, seconds)
        apart = np.abs(score["compiled"]() - score["torch"]()).max()
        self.store.close()
        yield from self.whole(timing, list(rivals))
        where = f"L = {self.length:,}"
        for name in stages:
            yield Goal(f"    {where}: {name}", timing[name].median, "us")
        yield Goal(f"  {where}: largest difference of a probability from torch", float(apart), "", 1e-5, at_least=False)

    def whole(self, timing: dict[str, Timing], rivals: list[str]) -> Iterator[Goal]:
        """A request as a whole, against torch and against full attention."""
        where = f"L = {self.length:,}, {TARGETS} targets"
        took, most = timing["compiled"], MOST_MS.get(self.length)
        yield Goal(f"{where}: history, translation, both stages, p50", took.median / 1e3, "ms", most, at_least=False)
        yield Goal("  20th percentile", took.low / 1e3, "ms")
        yield Goal("  by torch, history read and translated anew, p50", timing["torch"].median / 1e3, "ms")
        yield Goal("  torch over compiled", timing["torch"].median / took.median, "x")
        for inputs in rivals:
            yield Goal(f"  {inputs}, p50", timing[inputs].median / 1e3, "ms")
            least = LEAST_RATIO.get(self.length) if "channels" in inputs else None
            yield Goal(f"  {inputs}, over compiled", timing[inputs].median / took.median, "x", least)

    def score(self, live: Live) -> np.ndarray:
        """Probabilities, from the parsed request on."""
        prepared = prepare(live, self.store, self.request)
        return live.scorer.score(prepared.seen.history, prepared.targets).probability_T

    def stages(self) -> dict[str, Callable[[], Any]]:
        """Parts of a compiled request."""
        live, user = self.compiled, self.request.user_id
        prepared = prepare(live, self.store, self.request)
        history, targets, scorer = prepared.seen.history, prepared.targets, live.scorer
        found = scorer.find(history, targets)
        assert found is not None
        return {
            "version of the history": lambda: self.store.version(user),
            "history from the cache, targets to rows": lambda: prepare(live, self.store, self.request),
            "GSU": lambda: scorer.find(history, targets),
            "ESU and heads": lambda: scorer.rank_found(found),
            "a user's first request makes ready": lambda: scorer.ready(
                prepare(self.plain, self.store, self.request).seen.history
            ),
        }

    def made_ready(self) -> object:
        """What a user's first request costs more than the next."""
        return self.compiled.scorer.ready(prepare(self.plain, self.store, self.request).seen.history)

    def rivals(self) -> dict[str, Callable[[], Any]]:
        """Full attention over rows that are at hand, one vector a behaviour or the four channels of a pair."""
        prepared = prepare(self.compiled, self.store, self.request)
        history = prepared.seen.history
        rows = [torch.from_numpy(column) for column in (history.item_L, history.query_L, prepared.targets.item_T)]
        models = {inputs: FullAttention(self.compiled.bundle, inputs).eval() for inputs in ("id", "channels")}
        return {f"full attention, {inputs}": partial(model, *rows) for inputs, model in models.items()}


def popular(rng: np.random.Generator, bundle: Bundle, count: int) -> np.ndarray:
    """Catalogue rows by a long-tailed law."""
    return rng.zipf(1.3, count) % len(bundle.item_ids)


def planted(store: LMDBHistoryStore, bundle: Bundle, rng: np.random.Generator, length: int) -> Histories:
    """User "u": items of a long tail, half of them under a query, over DAYS days."""
    item, query = store.intern("items", bundle.item_ids), store.intern("queries", bundle.query_ids)
    asked = np.where(rng.random(length) < 0.5, rng.integers(0, len(query), length), NONE)
    empty, steps = np.empty(0, np.int32), np.arange(length, dtype=np.int32)
    return Histories(
        offsets=np.array([0, length]),
        user_id=["u"],
        user_attributes=[[]],
        item=item[popular(rng, bundle, length)],
        query=np.append(query, np.int32(NONE))[asked],
        origin=np.zeros(length, np.int8),
        time_ms=np.sort(END_MS - rng.integers(1000, DAYS * 86_400_000, length)),
        request=steps,
        train_end=np.array([length]),
        val_end=np.array([length]),
        exposures=Exposures(np.zeros(2, np.int64), empty, empty, empty),
    )


if __name__ == "__main__":
    run(main)
