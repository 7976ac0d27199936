"""The arithmetic of stored histories: how behaviours are ordered, merged and packed, 20 bytes each; knows no database.

The order is that of `seminar/data/pairs.py`: requests by the time of their first behaviour, then by arrival; inside one by time.
"""

import struct
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

from seminar.history.store import Event, Kind, UserHistory
from seminar.schema import NONE
from seminar.sequences import Histories

_START = struct.Struct("<q")
_BYTES_PER_BEHAVIOUR = 20
Intern = Callable[[Kind, Sequence[str]], Int32[ndarray, " N"]]


def arrange(events: Sequence[Event], intern: Intern, next_request: int) -> UserHistory:
    """Events as columns in their final order, requests numbered from `next_request` by the time of their first event."""
    item = intern("items", [e.item_id for e in events])
    queried = [i for i, e in enumerate(events) if e.query is not None]
    query = np.full(len(events), NONE, np.int32)
    query[queried] = intern("queries", [events[i].query or "" for i in queried])
    time_ms = np.array([e.time_ms for e in events], np.int64)
    request = number_requests([e.request_id or e.time_ms for e in events], time_ms) + np.int32(next_request)
    return UserHistory(item, query, time_ms, request)[np.lexsort((time_ms, request))]


def number_requests(groups: Sequence[Hashable], time_ms: Int64[ndarray, " L"]) -> Int32[ndarray, " L"]:
    """Rows of equal group are one request; requests are numbered from 0 by the time of their first row, ties by arrival."""
    arrival: dict[Hashable, int] = {}
    group_L = np.array([arrival.setdefault(group, len(arrival)) for group in groups], np.int64)
    start = np.full(len(arrival), np.iinfo(np.int64).max)
    np.minimum.at(start, group_L, time_ms)
    rank = np.empty(len(arrival), np.int32)
    rank[np.argsort(start, kind="stable")] = np.arange(len(arrival), dtype=np.int32)
    return rank[group_L]


def merge(old: UserHistory, begun: int | None, new: UserHistory) -> tuple[UserHistory, Int64[ndarray, " L"]]:
    """Two ordered runs, the new one with larger request numbers, as one; and the start of each row's request.

    begun: start of old's first request, which may have begun in rows before these.
    """
    rows = concatenate([old, new])
    start = np.concatenate([_starts(old, begun), _starts(new, None)])
    order = np.lexsort((rows.request_L, start))
    return rows[order], start[order]


def pack(rows: UserHistory, begun: int) -> bytes:
    """Columns one after the other, behind the start of the first row's request; little-endian."""
    columns = (rows.time_ms_L.astype("<i8"), *(c.astype("<i4") for c in (rows.item_L, rows.query_L, rows.request_L)))
    return _START.pack(begun) + b"".join(column.tobytes() for column in columns)


def unpack(packed: bytes | memoryview) -> UserHistory:
    """Rows of `pack`, as views of the buffer."""
    n = (len(packed) - _START.size) // _BYTES_PER_BEHAVIOUR
    time_ms = np.frombuffer(packed, "<i8", n, _START.size)
    rest = np.frombuffer(packed, "<i4", 3 * n, _START.size + 8 * n)
    return UserHistory(rest[:n], rest[n : 2 * n], time_ms, rest[2 * n :])


def begun_at(packed: bytes) -> int:
    """Start of the request that the first packed row belongs to."""
    return _START.unpack_from(packed)[0]


def newer_rows(histories: Histories, row: int, newest_ms: int, next_request: int) -> UserHistory:
    """What one user of a shard has after `newest_ms`, its requests numbered from `next_request`."""
    span = histories.span(row)
    item, query, request = (c[span].astype(np.int32) for c in (histories.item, histories.query, histories.request))
    rows = UserHistory(item, query, histories.time_ms[span].astype(np.int64), request)
    rows = rows[rows.time_ms_L > newest_ms]
    return replace(rows, request_L=rows.request_L - rows.request_L[:1] + np.int32(next_request))


def renumber(history: UserHistory) -> UserHistory:
    """The same with requests numbered 0, 1, ... in their order."""
    opens = np.diff(history.request_L, prepend=history.request_L[:1]) != 0
    return replace(history, request_L=np.cumsum(opens, dtype=np.int32))


def concatenate(parts: Sequence[UserHistory]) -> UserHistory:
    """Parts one after the other, copied."""
    columns = (np.concatenate([getattr(part, f.name) for part in (*parts, UserHistory.empty())]) for f in fields(UserHistory))
    return UserHistory(*columns)


def _starts(rows: UserHistory, begun: int | None) -> Int64[ndarray, " L"]:
    opens = np.flatnonzero(np.diff(rows.request_L, prepend=NONE))
    start = rows.time_ms_L[opens]
    if begun is not None:
        start[:1] = begun
    return np.repeat(start, np.diff(np.append(opens, len(rows))))
