"""Events of one shard of users to chunked query-item pair sequences: one vectorised build, no Python per user.

Price: a dozen numpy sorts of the shard, measured 1.3 CPU-seconds a million events. The order is defined in `ordering.py`.
"""

from dataclasses import dataclass
from datetime import UTC

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from numpy import ndarray

from seminar.config import PrepareConfig
from seminar.data.ordering import (
    Events,
    changes,
    cut_interleaved,
    encode_events,
    find_repeats,
    order_behaviours,
    order_exposures,
    rank_requests,
)
from seminar.data.weekly import count_by_week
from seminar.schema import NONE, ORIGINS, PAIRS


@dataclass(frozen=True)
class Shard:
    """What one shard of users becomes.

    pairs: schema PAIRS. duplicates: rows of the given events that repeat an earlier row in every column; dropped.
    item_counts, query_counts: columns `row` (catalogue row, ascending) and `count` (behaviours before train_end); items also by
    `week`.
    counts: users, requests, behaviours, exposures, trimmed (behaviours), exposures_dropped, and by query origin `origins`.
    """

    pairs: pa.Table
    duplicates: Int[ndarray, " D"]
    item_counts: pa.Table
    query_counts: pa.Table
    counts: dict[str, int | dict[str, int]]


def build_shard(events: pa.Table, users: pa.Table, item_ids: pa.Array, query_ids: pa.Array, config: PrepareConfig) -> Shard:
    """PAIRS rows of every user in `events` (schema EVENTS, file order) and `users` (schema USERS, unique ids).

    item_ids, query_ids: catalogue ids in row order; raises DataError naming an event's id that they lack.
    """
    user_ids = pc.unique(pa.chunked_array([*events["user_id"].chunks, *users["user_id"].chunks], pa.string()))
    user_ids = user_ids.take(pc.sort_indices(user_ids))
    all_rows = encode_events(events, user_ids, item_ids, query_ids)
    repeated = find_repeats(all_rows)
    rows = all_rows[np.flatnonzero(~repeated)]
    whole = rank_requests(rows)
    rank = cut_interleaved(rows, whole)
    taken, trimmed = order_behaviours(rows, rank, len(user_ids), config.max_history)
    shown, dropped = order_exposures(rows, whole, rank, taken)
    history = _History.of(rows[taken], rank[taken], len(user_ids))
    train_end, val_end = history.split(config)
    chunks = _Chunks.of(history, config.chunk_length)
    pairs = _table(user_ids, _attributes(users, user_ids), history, chunks, train_end, val_end, rows[shown], rank[shown])
    in_training = history.position < train_end[history.rows.user]
    origins = np.bincount(history.rows.origin, minlength=len(ORIGINS))
    return Shard(
        pairs=pairs,
        duplicates=np.flatnonzero(repeated),
        item_counts=count_by_week(history.rows.item[in_training], history.rows.time_ms[in_training]),
        query_counts=_count(history.rows.query[in_training & (history.rows.query != NONE)]),
        counts={
            "users": len(user_ids),
            "requests": len(history.starts),
            "behaviours": len(taken),
            "exposures": len(shown),
            "trimmed": trimmed,
            "exposures_dropped": dropped,
            "origins": {name: int(n) for name, n in zip(ORIGINS, origins, strict=True) if n},
        },
    )


@dataclass(frozen=True)
class _History:
    """Behaviours of all U users in final order. starts: where each of the R requests begins; rank_R its number;
    offsets, request_offsets: where each user's behaviours and requests begin; position: inside the user's history."""

    rows: Events
    rank: Int[ndarray, " L"]
    starts: Int[ndarray, " R"]
    offsets: Int[ndarray, " U1"]
    request_offsets: Int[ndarray, " U1"]
    position: Int[ndarray, " L"]

    @classmethod
    def of(cls, rows: Events, rank: Int[ndarray, " L"], num_users: int) -> "_History":
        starts = np.flatnonzero(changes(rank))
        offsets = _offsets(np.bincount(rows.user, minlength=num_users))
        request_offsets = _offsets(np.bincount(rows.user[starts], minlength=num_users))
        return cls(rows, rank, starts, offsets, request_offsets, np.arange(len(rank)) - offsets[rows.user])

    @property
    def request(self) -> Int[ndarray, " L"]:
        """Number of each behaviour's request inside its user: 0, 1, ..."""
        return np.cumsum(changes(self.rank)) - 1 - self.request_offsets[self.rows.user]

    def split(self, config: PrepareConfig) -> tuple[Int[ndarray, " U"], Int[ndarray, " U"]]:
        """train_end and val_end.

        last_request: the last request is test. time: requests that begin at or after test_from are. In both the request
        before those is validation. A held-out request always has a history: a user's only request is training under
        last_request, and the only one before the test part is training, not validation. (Under `time` a user first seen
        after test_from is all test: the cold start that this split is there to measure.)
        """
        num_requests = np.diff(self.request_offsets)
        if config.test_from is None:
            before_test = np.where(num_requests >= 2, num_requests - 1, num_requests)
        else:
            moment = config.test_from if config.test_from.tzinfo else config.test_from.replace(tzinfo=UTC)
            early = self.rows.time_ms[self.starts] < moment.timestamp() * 1000
            before_test = np.bincount(self.rows.user[self.starts][early], minlength=len(num_requests))
        before_validation = np.where(before_test >= 2, before_test - 1, before_test)
        bounds = np.append(self.starts, len(self.rank))
        first = self.request_offsets[:-1]
        return bounds[first + before_validation] - self.offsets[:-1], bounds[first + before_test] - self.offsets[:-1]


@dataclass(frozen=True)
class _Chunks:
    """N rows of the output: user of each, its number in the user, where it starts in the user's history, its length;
    first: row of each user's first chunk; capacity: behaviours a full chunk holds."""

    user: Int[ndarray, " N"]
    number: Int[ndarray, " N"]
    start: Int[ndarray, " N"]
    length: Int[ndarray, " N"]
    first: Int[ndarray, " U"]
    capacity: int

    @classmethod
    def of(cls, history: _History, chunk_length: int) -> "_Chunks":
        lengths = np.diff(history.offsets)
        count = np.maximum(-(-lengths // chunk_length), 1)
        first = _offsets(count)[:-1]
        user = np.repeat(np.arange(len(lengths)), count)
        number = np.arange(len(user)) - first[user]
        start = number * chunk_length
        return cls(user, number, start, np.minimum(lengths[user] - start, chunk_length), first, chunk_length)


def _table(
    user_ids: pa.Array,
    attributes: pa.Array,
    history: _History,
    chunks: _Chunks,
    train_end: Int[ndarray, " U"],
    val_end: Int[ndarray, " U"],
    shown: Events,
    shown_rank: Int[ndarray, " X"],
) -> pa.Table:
    # A request's exposures live in the chunk of its first behaviour; both sides are in request order, so counts suffice.
    request_of_shown = np.searchsorted(history.rank[history.starts], shown_rank)
    chunk_of_shown = chunks.first[shown.user] + history.position[history.starts][request_of_shown] // chunks.capacity
    behaviours = pa.array(_offsets(chunks.length), pa.int32())
    exposures = pa.array(_offsets(np.bincount(chunk_of_shown, minlength=len(chunks.user))), pa.int32())
    columns = {
        "user_id": user_ids.take(pa.array(chunks.user)),
        "user_attributes": attributes.take(pa.array(chunks.user)),
        "chunk": chunks.number,
        "start": chunks.start,
        "history_length": np.diff(history.offsets)[chunks.user],
        "train_end": train_end[chunks.user],
        "val_end": val_end[chunks.user],
        "item": (behaviours, history.rows.item),
        "query": (behaviours, history.rows.query),
        "origin": (behaviours, history.rows.origin),
        "time_ms": (behaviours, history.rows.time_ms),
        "request": (behaviours, history.request),
        "exposed_item": (exposures, shown.item),
        "exposed_query": (exposures, shown.query),
        "exposed_request": (exposures, request_of_shown - history.request_offsets[shown.user]),
    }
    return pa.table([_column(columns[field.name], field.type) for field in PAIRS], schema=PAIRS)


def _column(values: ndarray | pa.Array | tuple[pa.Array, ndarray], kind: pa.DataType) -> pa.Array:
    if isinstance(values, tuple):
        offsets, flat = values
        return pa.ListArray.from_arrays(offsets, pa.array(flat.astype(kind.value_type.to_pandas_dtype())))
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _attributes(users: pa.Table, user_ids: pa.Array) -> pa.Array:
    return users["attributes"].combine_chunks().take(pc.index_in(user_ids, users["user_id"].combine_chunks()))


def _count(rows: Int[ndarray, " N"]) -> pa.Table:
    row, count = np.unique(rows, return_counts=True)
    return pa.table({"row": pa.array(row, pa.int32()), "count": pa.array(count, pa.int64())})


def _offsets(lengths: Int[ndarray, " N"]) -> Int[ndarray, " N1"]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
