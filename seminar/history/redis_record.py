"""A user's history as one Redis string: a header, then rows of 20 bytes in their final order; knows no server.

    header    stamp (8 random bytes, new at every change), next request, length, newest time, start of the last request
    row       time, item, query, request; little-endian

So an append that is not late writes its own rows and the header, a read is one GET, and the header alone says whether the history
is still the one that was read.
"""

import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from seminar.history.chunks import merge
from seminar.history.store import UserHistory

_HEAD = struct.Struct("<8sIIqq")
HEAD_BYTES = _HEAD.size
_ROW = np.dtype([("time_ms", "<i8"), ("item", "<i4"), ("query", "<i4"), ("request", "<i4")])
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Head:
    """What an append must know of the history before it. packed: the header as stored, empty for a user that is new.

    last_start: when the last request began, Unix ms; what begins before it is late.
    """

    packed: bytes = b""
    next_request: int = 0
    length: int = 0
    newest_ms: int = _NEVER
    last_start_ms: int = _NEVER

    @classmethod
    def unpack(cls, packed: bytes) -> "Head":
        return cls(packed, *_HEAD.unpack(packed)[1:]) if packed else cls()

    @classmethod
    def stamped(cls, next_request: int, length: int, newest_ms: int, last_start_ms: int) -> "Head":
        """A header that never was before."""
        packed = _HEAD.pack(secrets.token_bytes(8), next_request, length, newest_ms, last_start_ms)
        return cls(packed, next_request, length, newest_ms, last_start_ms)


@dataclass(frozen=True)
class Change:
    """From one header to the next: `rows`, packed, from byte `offset` of the string on."""

    before: Head
    after: Head
    offset: int
    rows: bytes


def grow(head: Head, new: UserHistory, whole: Callable[[], UserHistory]) -> Change:
    """Merge ordered rows of new requests. whole: reads the history so far; asked only if one of the new ones is late."""
    if not len(new):
        return Change(head, head if head.packed else Head.stamped(0, 0, _NEVER, _NEVER), HEAD_BYTES, b"")
    last_start_ms = int(new.time_ms_L[np.searchsorted(new.request_L, new.request_L[-1])])
    after = Head.stamped(
        next_request=int(new.request_L[-1]) + 1,
        length=head.length + len(new),
        newest_ms=max(head.newest_ms, int(new.time_ms_L.max())),
        last_start_ms=max(head.last_start_ms, last_start_ms),
    )
    first, rows = head.length, new
    if new.time_ms_L[0] < head.last_start_ms:
        old = whole()
        merged, _ = merge(old, None, new)
        first = int(np.argmax(merged.request_L[: len(old)] != old.request_L))
        rows = merged[first:]
    return Change(head, after, HEAD_BYTES + first * _ROW.itemsize, _pack(rows))


def rows_of(packed: bytes) -> UserHistory:
    """Rows behind a header; requests have the numbers of their arrival."""
    row_L: ndarray = np.frombuffer(packed, _ROW, offset=HEAD_BYTES)
    item, query, time_ms, request = (np.ascontiguousarray(row_L[name]) for name in ("item", "query", "time_ms", "request"))
    return UserHistory(item, query, time_ms, request)


def _pack(rows: UserHistory) -> bytes:
    row_L = np.empty(len(rows), _ROW)
    row_L["time_ms"], row_L["item"] = rows.time_ms_L, rows.item_L
    row_L["query"], row_L["request"] = rows.query_L, rows.request_L
    return row_L.tobytes()
