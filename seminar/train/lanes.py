"""Lanes: training data as a fixed number of streams, in which the batch of any step is known without playing the steps before it.

A lane owns shards i::lanes. Batch number `step` depends on (seed, lane, step) and the shards only, so a job resumed in mid-epoch
on any number of workers sees bit-identical batches. Memory: one group of shards, about `GROUP_BEHAVIOURS` behaviours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy import ndarray

from seminar.config import TrainConfig
from seminar.errors import ConfigError, explain
from seminar.sequences import Histories, read_histories

GROUP_BEHAVIOURS = 8_000_000
"""Behaviours held and shuffled together, about 200 MB; a larger shard is a group of its own."""

B = TypeVar("B")
POOL_BATCHES = 16
"""Batches whose samples are sorted by length together: on Complete Journey padding falls from 55 % of a batch to 6 %."""

B_co = TypeVar("B_co", covariant=True)


@runtime_checkable
class Samples(Protocol[B_co]):
    """What can be drawn from one group of shards: `len` samples, any of which make a batch."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Int[ndarray, " N"]:
        """Behaviours of each sample."""
        ...

    def draw(self, index: Int[ndarray, " N"], rng: np.random.Generator) -> B_co:
        """The batch of these samples; all its randomness comes from `rng`."""
        ...


class Lane(Generic[B]):
    """Batches of one lane. An epoch visits the groups in random order and each group's samples in random order.

    The last, smaller batch of a group is left out of an epoch (another part each time), unless the group has no other.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        lane: int,
        config: TrainConfig,
        per_batch: int,
        open_samples: Callable[[Histories], Samples[B]],
    ) -> None:
        self._lane, self._seed, self._per_batch, self._open = lane, config.seed, per_batch, open_samples
        self._groups = group_shards(shards[lane :: config.lanes], GROUP_BEHAVIOURS)
        if not self._groups:
            raise ConfigError(
                explain(
                    f"training lane {lane}",
                    got=f"no shard (lanes = {config.lanes}, shards = {len(shards)})",
                    expected="at least one shard a lane",
                    fix=f"lower lanes to {max(len(shards), 1)} or prepare with more shards",
                )
            )
        self._held: tuple[int, Samples[B]] | None = None
        self._shuffled: tuple[tuple[int, int], Int[ndarray, " N"]] | None = None
        self._sizes = [len(self._samples(group)) for group in range(len(self._groups))]
        self._batches = np.array([max(size // per_batch, min(size, 1)) for size in self._sizes])
        if not self._batches.sum():
            raise ConfigError(
                explain(
                    f"training lane {lane}",
                    got=f"nothing to train on in {len(shards[lane :: config.lanes])} shards",
                    expected="at least one sample",
                    fix="lower lanes or min_history, or use more users",
                )
            )

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return sum(self._sizes)

    @property
    def steps_per_epoch(self) -> int:
        return int(self._batches.sum())

    def batch(self, step: int) -> B:
        """The batch of optimiser step `step` (from 0)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = self._rng(_ORDER, epoch).permutation(len(self._groups))
        ends = np.cumsum(self._batches[order])
        place = int(np.searchsorted(ends, index, side="right"))
        group = int(order[place])
        first = (index - int(ends[place] - self._batches[group])) * self._per_batch
        chosen = self._order_of(epoch, group)[first : first + self._per_batch]
        return self._samples(group).draw(chosen, self._rng(_DRAW, step))

    def _samples(self, group: int) -> Samples[B]:
        if self._held is None or self._held[0] != group:
            self._held = None  # freed before the next group is read
            self._held = (group, self._open(read_shards(self._groups[group])))
        return self._held[1]

    def _order_of(self, epoch: int, group: int) -> Int[ndarray, " N"]:
        if self._shuffled is None or self._shuffled[0] != (epoch, group):
            lengths = self._samples(group).lengths
            self._shuffled = ((epoch, group), bucketed_order(lengths, self._per_batch, self._rng(_SHUFFLE, epoch, group)))
        return self._shuffled[1]

    def _rng(self, purpose: int, *position: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._lane, purpose, *position])


_ORDER, _SHUFFLE, _DRAW = range(3)


def bucketed_order(lengths: Int[ndarray, " N"], per_batch: int, rng: np.random.Generator) -> Int[ndarray, " N"]:
    """A random order in which the samples of a batch have similar lengths, so that little of it is padding.

    Samples are shuffled, sorted by length inside pools of POOL_BATCHES batches, and the batches shuffled again. What does not
    fill a batch stays at the end, a random part of all.
    """
    order = rng.permutation(len(lengths))
    full = len(order) // per_batch * per_batch
    pool = np.arange(full) // (per_batch * POOL_BATCHES)
    batches = order[:full][np.lexsort((lengths[order[:full]], pool))].reshape(-1, per_batch)
    return np.concatenate([batches[rng.permutation(len(batches))].ravel(), order[full:]])


def group_shards(shards: Sequence[Path], group_behaviours: int) -> list[list[Path]]:
    """Neighbouring shards together until a group would exceed `group_behaviours`; sizes come from the files' footers."""
    groups: list[list[Path]] = []
    room = 0
    for shard in shards:
        size = _num_behaviours(shard)
        if not groups or size > room:
            groups.append([])
            room = group_behaviours
        groups[-1].append(shard)
        room -= size
    return groups


def read_shards(shards: Sequence[Path]) -> Histories:
    """The users of several shard files as one Histories."""
    return read_histories(pa.concat_tables([pq.read_table(path) for path in shards]))


def _num_behaviours(shard: Path) -> int:
    metadata = pq.read_metadata(shard)
    paths = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
    column = next(i for i, path in enumerate(paths) if path.split(".")[0] == "item")
    return sum(metadata.row_group(i).column(column).num_values for i in range(metadata.num_row_groups))
