"""What the load test asks for: real users, planted ones with long histories of real behaviours, targets that were taken."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.artifacts import Artifact, Store
from seminar.batching import Request, collate
from seminar.bundle import Bundle
from seminar.compiled.ready import Pairs
from seminar.history.lmdb_store import LMDBHistoryStore
from seminar.history.store import import_histories
from seminar.schema import CTR, NONE
from seminar.sequences import Exposures, Histories
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards

TARGETS = 100
PLANTED = {10_240: 24, 102_400: 6}
"""Length of a planted history to how many users have one."""
GROWTH = (250, 500, 1000, 2000)
"""First behaviours of a history among which distinct pairs are counted."""
COLD = 0.1
"""Share of the users that only the blocks of cold users ask for."""
BODIES = 4_000
"""Different requests of a block."""


@dataclass(frozen=True)
class World:
    """The bundle's users and items as requests see them. real: their behaviours, in catalogue rows."""

    bundle: Artifact
    real: Histories
    item_ids: list[str]

    @classmethod
    def open(cls, workdir: Path) -> "World":
        """The bundle in use of a workdir and the histories it was made from."""
        store = Store(workdir)
        bundle = store.open("bundle")
        pairs = store.open("pairs", bundle.manifest.inputs["pairs"].version)
        return cls(bundle, read_shards(shard_paths(pairs)), Bundle.load(bundle.path).item_ids)

    def cold_and_warm(self) -> tuple[list[str], list[str]]:
        """User ids by who asks for them; every user with behaviours is in one of the lists."""
        users = [name for name, length in zip(self.real.user_id, self.real.lengths, strict=True) if length]
        order = np.random.default_rng(5).permutation(len(users))
        count = int(COLD * len(users))
        return [users[i] for i in order[:count]], [users[i] for i in order[count:]]

    def fill(self, folder: Path) -> None:
        """A history store of all real users and the planted ones."""
        store = LMDBHistoryStore(folder)
        pairs = Store(self.bundle.path.parent.parent).open("pairs", self.bundle.manifest.inputs["pairs"].version)
        import_histories(store, pairs)
        names, local = self.item_ids, store.intern("items", self.item_ids)
        assert len(names) == len(local)
        queries = store.intern("queries", Bundle.load(self.bundle.path).query_ids)
        planted = self.planted()
        query = np.append(queries, np.int32(NONE))[planted.query]
        store.load(replace(planted, item=local[planted.item], query=query))
        store.close()

    def planted(self) -> Histories:
        """Long histories: behaviours of whole real users, one user after another in shuffled order, oldest first."""
        draw = np.random.default_rng(11)
        rows = [_mixed(self.real, length, draw) for length, users in PLANTED.items() for _ in range(users)]
        lengths = [len(row) for row in rows]
        row = np.concatenate(rows)
        count = len(rows)
        none, zeros = np.empty(0, np.int64), np.zeros(count, np.int64)
        # The same span of time as the log's, so that ages are as they are.
        span = int(self.real.time_ms.max() - self.real.time_ms.min())
        time_ms = [int(self.real.time_ms.min()) + np.linspace(0, span, n).astype(np.int64) for n in lengths]
        return Histories(
            offsets=np.append(0, np.cumsum(lengths)),
            user_id=[planted_user(length, i) for length, users in PLANTED.items() for i in range(users)],
            user_attributes=[[] for _ in range(count)],
            item=self.real.item[row],
            query=self.real.query[row],
            origin=self.real.origin[row],
            time_ms=np.concatenate(time_ms),
            request=np.concatenate([np.arange(n) // 10 for n in lengths]),
            train_end=zeros,
            val_end=zeros,
            exposures=Exposures(np.zeros(count + 1, np.int64), none, none, none),
        )

    def planted_pairs(self) -> dict[int, float]:
        """Distinct (item, query) of a planted history, on the mean, by its length."""
        planted = self.planted()
        rows = {length: np.flatnonzero(planted.lengths == length).tolist() for length in PLANTED}
        return {length: float(np.mean([_pairs(planted, row, length) for row in rows[length]])) for length in PLANTED}

    def grown_pairs(self, length: int) -> float:
        """Distinct (item, query) of a real user of that length by Heaps' law, a power of the length: as those of the 100 longest
        histories grow."""
        longest = np.argsort(-self.real.lengths)[:100]
        mean = [np.mean([_pairs(self.real, row, n) for row in longest if self.real.lengths[row] >= n]) for n in GROWTH]
        power, start = np.polyfit(np.log(GROWTH), np.log(mean), 1)
        return float(np.exp(start) * length**power)

    def bodies(self, users: Sequence[str], count: int = BODIES, seed: int = 0, time_ms: int | None = None) -> Iterator[str]:
        """`user, tab, body` lines of score requests: each of these users as often as the others, 100 items as often as taken."""
        draw = np.random.default_rng(seed)
        moment = {} if time_ms is None else {"time_ms": time_ms}
        for number in range(count):
            user = users[number % len(users)]
            items = self.real.item[draw.integers(0, len(self.real.item), TARGETS)]
            targets = [{"item_id": self.item_ids[item]} for item in items]
            body: dict[str, Any] = {"user_id": user, "targets": targets, **moment}
            yield f"{user}\t{json.dumps(body, separators=(',', ':'))}"

    def later_ms(self) -> int:
        """An hour after the last behaviour."""
        return int(self.real.time_ms.max()) + 3_600_000


def _pairs(histories: Histories, row: int, first: int) -> int:
    """Distinct (item, query) among a user's first behaviours."""
    span = histories.span(row)
    some = slice(span.start, min(span.start + first, span.stop))
    return len(Pairs.of(histories.item[some].astype(np.int64), histories.query[some].astype(np.int64)))


def planted_user(length: int, number: int) -> str:
    return f"planted-{length}-{number}"


def offline(world: World, bundle: Bundle, histories: Histories, body: dict[str, Any]) -> Float[ndarray, " T"]:
    """What the offline ranker says: the user's whole history as a batch of one, exact retrieval."""
    row = histories.user_id.index(body["user_id"])
    item_T: Int[ndarray, " T"] = bundle.item_row([target["item_id"] for target in body["targets"]])
    count = len(item_T)
    request = Request(
        row=row,
        end=int(histories.lengths[row]),
        time_ms=body["time_ms"],
        item_T=item_T,
        query_T=np.full(count, NONE),
        label_T=np.zeros(count, np.float32),
        task_T=np.full(count, CTR),
    )
    with torch.inference_mode():
        return torch.sigmoid(bundle.ranker.score(collate(histories, [request], 10**6))[0]).numpy()


def _mixed(real: Histories, length: int, draw: np.random.Generator) -> Int[ndarray, " L"]:
    """Rows of `length` real behaviours."""
    rows, have = [], 0
    while have < length:
        user = int(draw.integers(len(real)))
        span = real.span(user)
        rows.append(np.arange(span.start, span.stop))
        have += span.stop - span.start
    return np.concatenate(rows)[:length]
