"""Histories of served users: what a store promises, its vocabulary, and the way from store-local ids to a bundle's rows.

A store interns ids to small local numbers, so a history outlives every bundle and costs 20 bytes a behaviour; `CatalogueRows`
translates for the bundle in use. `seminar/history/lmdb_store.py` keeps them on a node's disk, `redis_store.py` on a server.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, Int32, Int64
from numpy import ndarray

from seminar.artifacts import Artifact
from seminar.errors import SeminarError, UnknownUser, explain
from seminar.schema import NONE
from seminar.sequences import Histories, read_histories

Kind = Literal["items", "queries"]
Durability = Literal["always", "everysec", "server"]
"""What a server must promise: a write is on its disk before the answer; a second or two later; or whatever it is set up for."""

FREE_TEXT = "\x1f"
"""Marks the stored name of a query that was given as text: FREE_TEXT + normalised text; no id may begin with it."""


class StoreUnavailable(SeminarError):
    """The store cannot be reached or relied on now; what was being written may be stored or not, and an event id tells."""


class HistoryFull(SeminarError):
    """The store reached its size limit; nothing of the request was stored."""


@dataclass(frozen=True)
class Event:
    """One behaviour to append. query: a query id, or FREE_TEXT + normalised text.

    event_id: makes the append idempotent, per user. request_id: events of one append that share it form one request; events
    without it form a request with the other such events of the same time.
    """

    item_id: str
    time_ms: int
    query: str | None = None
    event_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class UserHistory:
    """One user's behaviours, oldest first, in local ids (query -1: none); the order is that of `seminar/data/pairs.py`.

    time_ms_L: Unix ms. request_L: 0, 1, ... never decreasing.
    """

    item_L: Int32[ndarray, " L"]
    query_L: Int32[ndarray, " L"]
    time_ms_L: Int64[ndarray, " L"]
    request_L: Int32[ndarray, " L"]

    @classmethod
    def empty(cls) -> "UserHistory":
        none = np.empty(0, np.int32)
        return cls(none, none, none.astype(np.int64), none)

    def __len__(self) -> int:
        return len(self.item_L)

    def __getitem__(self, rows: slice | Int[ndarray, " N"] | Bool[ndarray, " N"]) -> "UserHistory":
        return UserHistory(self.item_L[rows], self.query_L[rows], self.time_ms_L[rows], self.request_L[rows])


@dataclass(frozen=True)
class Appended:
    """accepted: behaviours added. duplicates: event ids that were there already. length: the history's length now."""

    accepted: int
    duplicates: int
    length: int


@dataclass(frozen=True)
class StoredUser:
    """length: behaviours. newest_ms: time of the newest, None without any."""

    user_id: str
    length: int
    newest_ms: int | None


@dataclass(frozen=True)
class Imported:
    """users: users that were new. behaviours: behaviours added."""

    users: int
    behaviours: int


@runtime_checkable
class HistoryStore(Protocol):
    """Durable, shared histories: a write is on disk before it returns, and the next read in any process sees it."""

    embedded: bool
    """Whether it lives in this process's memory: a look-up then takes microseconds and never waits for a network."""

    @property
    def num_users(self) -> int: ...

    def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Merge behaviours in order; a late one goes to its place, equal moments keep their order of arrival."""
        ...

    def read(self, user_id: str) -> UserHistory:
        """The whole history; UnknownUser if the store never saw the user."""
        ...

    def version(self, user_id: str) -> bytes | None:
        """Another value whenever another history would be read, and never one that was there before; None for an unknown user.

        Microseconds, whatever the length: how a cache of histories learns that it is out of date. Ask before reading.
        """
        ...

    def users(self, prefix: str, limit: int) -> list[StoredUser]:
        """Users whose id begins with `prefix`, in the order of their ids' bytes; very long ids may be left out."""
        ...

    def intern(self, kind: Kind, names: Sequence[str]) -> Int32[ndarray, " N"]:
        """Local ids, given for ever; new names get the next numbers."""
        ...

    def names(self, kind: Kind, start: int = 0) -> list[str]:
        """All names whose local id is at least `start`, in order."""
        ...

    def names_of(self, kind: Kind, local_N: Int[ndarray, " N"]) -> list[str | None]:
        """Name of each local id, None for -1."""
        ...

    def load(self, histories: Histories) -> Imported:
        """Bulk form of append: item and query are local ids. Users already there get only what is newer than their newest."""
        ...

    def has_imported(self, version: str) -> bool:
        """True after `set_imported(version)`, in any process and for ever."""
        ...

    def set_imported(self, version: str) -> None: ...

    def import_lock(self) -> AbstractContextManager[None]:
        """One holder at a time, whatever process or node it runs in; the others wait. A holder that died holds it no longer."""
        ...

    def close(self) -> None: ...


def unknown_user(user_id: str) -> UnknownUser:
    """The error of a user without a history."""
    return UnknownUser(explain(f"user {user_id!r}", got="no history", expected="a known user", fix="POST /v1/events first"))


class CatalogueRows:
    """Local id -> catalogue row of one bundle, -1 where it has none; follows the store as it interns new ids. Thread-safe."""

    def __init__(self, store: HistoryStore, kind: Kind, row_of: Callable[[Sequence[str]], Int[ndarray, " N"]]) -> None:
        self._store, self._kind, self._row_of = store, kind, row_of
        self._lock = threading.Lock()
        # The last entry is no local id: index -1, "no query", finds NONE there.
        self._rows = np.array([NONE], np.int64)
        self._extend()

    def __call__(self, local_N: Int[ndarray, " N"]) -> Int64[ndarray, " N"]:
        """Catalogue rows of local ids (-1 stays -1)."""
        if local_N.max(initial=NONE) >= len(self._rows) - 1:
            self._extend()
        return self._rows[local_N]

    def _extend(self) -> None:
        with self._lock:
            known = self._rows[:-1]
            added = self._row_of(self._store.names(self._kind, len(known)))
            self._rows = np.concatenate([known, added, [NONE]]).astype(np.int64)


def import_histories(store: HistoryStore, pairs: Artifact) -> Imported:
    """Load every behaviour of a `pairs` artefact, once: a later night's artefact adds only what is newer, a killed run goes on.

    Of several replicas that start together one loads and the others wait. Price: about a second a million behaviours; memory is
    one shard.
    """
    if not store.has_imported(pairs.version):
        with store.import_lock():
            if not store.has_imported(pairs.version):
                return _import(store, pairs)
    return Imported(0, 0)


def _import(store: HistoryStore, pairs: Artifact) -> Imported:
    items, queries = (_intern_column(store, pairs, kind) for kind in ("items", "queries"))
    users = behaviours = 0
    for name in sorted(n for n in pairs.manifest.files if n.startswith("shards/")):
        shard = read_histories(pq.read_table(pairs.file(name)))
        added = store.load(replace(shard, item=items[shard.item], query=np.append(queries, np.int32(NONE))[shard.query]))
        users, behaviours = users + added.users, behaviours + added.behaviours
    store.set_imported(pairs.version)
    return Imported(users, behaviours)


def _intern_column(store: HistoryStore, pairs: Artifact, kind: Kind) -> Int32[ndarray, " N"]:
    table = pq.read_table(pairs.file(f"{kind}.parquet"), columns=[{"items": "item_id", "queries": "query_id"}[kind]])
    return store.intern(kind, table.column(0).to_pylist())
