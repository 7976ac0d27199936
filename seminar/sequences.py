"""Histories in memory: one flat array a column plus offsets, never a Python object a behaviour.

`Histories` is what a shard of the `pairs` artefact becomes when it is read, and what a served user's history becomes.
Building the shards from events lives in `seminar/data/pairs.py`.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from numpy import ndarray

from seminar.schema import PAIRS


@dataclass(frozen=True)
class Ragged:
    """Columns that share one set of row boundaries: row u is `values[offsets[u]:offsets[u+1]]`."""

    offsets: Int[ndarray, " N1"]

    def span(self, row: int) -> slice:
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    @property
    def lengths(self) -> Int[ndarray, " N"]:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Histories(Ragged):
    """All behaviours of N users, oldest first; item and query are catalogue rows, -1 is no query.

    `request` numbers a user's requests from 0 and never decreases inside a user. train_end and val_end are positions inside
    the user's history. `exposures` holds the label-0 rows, with the request they were shown in.
    """

    user_id: list[str]
    user_attributes: list[list[str]]
    item: Int[ndarray, " E"]
    query: Int[ndarray, " E"]
    origin: Int[ndarray, " E"]
    time_ms: Int[ndarray, " E"]
    request: Int[ndarray, " E"]
    train_end: Int[ndarray, " N"]
    val_end: Int[ndarray, " N"]
    exposures: "Exposures"

    def __len__(self) -> int:
        return len(self.user_id)

    def request_starts(self, row: int) -> Int[ndarray, " R1"]:
        """Positions in user `row`'s history where each request starts, plus the length: request r is [s[r], s[r+1])."""
        request = self.request[self.span(row)]
        starts = np.flatnonzero(np.diff(request, prepend=-1)) if len(request) else np.empty(0, np.int64)
        return np.append(starts, len(request))


@dataclass(frozen=True)
class Exposures(Ragged):
    """Items shown and not taken, of the same N users."""

    item: Int[ndarray, " X"]
    query: Int[ndarray, " X"]
    request: Int[ndarray, " X"]


def read_histories(pairs: pa.Table) -> Histories:
    """Join the chunks of each user (rows sorted by user_id, chunk) into one history."""
    pairs = pairs.select(PAIRS.names).combine_chunks()
    first = np.flatnonzero(pairs["chunk"].to_numpy() == 0)
    heads = pairs.take(pa.array(first))
    behaviour = _row_offsets(pairs["item"], first)
    shown = _row_offsets(pairs["exposed_item"], first)
    return Histories(
        offsets=behaviour,
        user_id=heads["user_id"].to_pylist(),
        user_attributes=[a or [] for a in heads["user_attributes"].to_pylist()],
        item=_flat(pairs["item"]),
        query=_flat(pairs["query"]),
        origin=_flat(pairs["origin"]),
        time_ms=_flat(pairs["time_ms"]),
        request=_flat(pairs["request"]),
        train_end=heads["train_end"].to_numpy(),
        val_end=heads["val_end"].to_numpy(),
        exposures=Exposures(
            offsets=shown,
            item=_flat(pairs["exposed_item"]),
            query=_flat(pairs["exposed_query"]),
            request=_flat(pairs["exposed_request"]),
        ),
    )


def _flat(column: pa.ChunkedArray) -> ndarray:
    return pc.list_flatten(column).to_numpy()


def _row_offsets(column: pa.ChunkedArray, first: ndarray) -> ndarray:
    per_chunk = pc.list_value_length(column).to_numpy().astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(per_chunk)])
    return np.append(ends[first], ends[-1])
