"""Histories in LMDB: one local folder a node, mapped by every replica of it; reads never wait, writers queue across processes.

    items, queries        name -> local id, append-only      item_names, query_names   local id -> name
    users                 user_id -> number, chunks, next request, length, newest time
    chunks                user number, chunk number -> packed columns of at most CHUNK behaviours, 20 bytes each
    events                digest of (user, event_id) -> nothing: what was accepted before, some 70 bytes an id

An append rewrites the last chunk, not the history; a late event rewrites the chunks from its place on. LMDB locks through shared
memory, so the folder must be on a local disk, never on a network mount. Every commit is an fsync.
"""

import fcntl
import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
from jaxtyping import Int, Int32
from numpy import ndarray

from seminar.errors import ArtifactError, explain
from seminar.history.chunks import arrange, begun_at, concatenate, merge, newer_rows, pack, renumber, unpack
from seminar.history.store import Appended, Event, HistoryFull, Imported, Kind, StoredUser, UserHistory, unknown_user
from seminar.schema import NONE
from seminar.sequences import Histories

FORMAT = b"1"
CHUNK = 512
"""Most behaviours a chunk: an append rewrites at most 10 KB, and a history of 1e5 is read with 196 steps of a cursor."""
_MAX_KEY = 511
_TABLES = ("meta", "users", "chunks", "events", "items", "item_names", "queries", "query_names")
_NAMES = {"items": "item_names", "queries": "query_names"}
_LOCAL = struct.Struct(">I")
_CHUNK_KEY = struct.Struct(">II")
_USER = struct.Struct("<IIIQq")


@dataclass(frozen=True)
class _User:
    number: int
    chunks: int = 0
    next_request: int = 0
    length: int = 0
    newest_ms: int = np.iinfo(np.int64).min


class LMDBHistoryStore:
    """HistoryStore over an LMDB environment. Open it once a process, close it before opening it again."""

    embedded = True

    def __init__(self, path: Path | str, max_gib: float = 64.0) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._max_gib = max_gib
        self._env = lmdb.open(str(self.path), map_size=int(max_gib * 2**30), max_dbs=len(_TABLES), max_readers=1024)
        # Slots of readers that were killed would keep old pages alive.
        self._env.reader_check()
        self._db = {name: self._env.open_db(name.encode()) for name in _TABLES}
        self._check_format()

    @property
    def num_users(self) -> int:
        with self._env.begin() as txn:
            return txn.stat(self._db["users"])["entries"]

    def close(self) -> None:
        self._env.close()

    def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Merge behaviours in order, durably. HistoryFull if the size limit is reached: then nothing was stored."""
        with self._write() as txn:
            user = self._find(txn, user_id) or _User(txn.stat(self._db["users"])["entries"])
            fresh = [event for event in events if self._first_seen(txn, user.number, event.event_id)]
            if fresh:
                user = self._insert(txn, user, arrange(fresh, partial(self._intern, txn), user.next_request))
                self._put_user(txn, user_id, user)
            return Appended(len(fresh), len(events) - len(fresh), user.length)

    def read(self, user_id: str) -> UserHistory:
        """The whole history, oldest first; UnknownUser if the store never saw the user."""
        with self._env.begin(buffers=True) as txn:
            user = self._find(txn, user_id)
            if user is None:
                raise unknown_user(user_id)
            return renumber(self._chunks(txn, user, 0))

    def version(self, user_id: str) -> bytes | None:
        """The user's record: every append that adds something raises its number of requests."""
        with self._env.begin(db=self._db["users"]) as txn:
            return txn.get(_key(user_id))

    def users(self, prefix: str, limit: int) -> list[StoredUser]:
        """Users whose id begins with `prefix`, in the order of their ids' bytes; ids of more than 510 bytes are not listed."""
        first, found = b"." + prefix.encode(), []
        with self._env.begin(db=self._db["users"]) as txn:
            cursor = txn.cursor()
            if cursor.set_range(first):
                for key, value in cursor:
                    if len(found) == limit or not key.startswith(first):
                        break
                    user = _User(*_USER.unpack(value))
                    found.append(StoredUser(key[1:].decode(), user.length, user.newest_ms if user.length else None))
        return found

    def intern(self, kind: Kind, names: Sequence[str]) -> Int32[ndarray, " N"]:
        """Local ids, given for ever; new names get the next numbers."""
        with self._write() as txn:
            return self._intern(txn, kind, names)

    def names(self, kind: Kind, start: int = 0) -> list[str]:
        """All names whose local id is at least `start`, in order."""
        with self._env.begin(db=self._db[_NAMES[kind]], buffers=True) as txn:
            cursor = txn.cursor()
            return [str(value, "utf8") for _, value in cursor] if cursor.set_range(_LOCAL.pack(start)) else []

    def names_of(self, kind: Kind, local_N: Int[ndarray, " N"]) -> list[str | None]:
        """Name of each local id, None for -1."""
        with self._env.begin(db=self._db[_NAMES[kind]]) as txn:
            return [None if i == NONE else _get(txn, _LOCAL.pack(i)).decode() for i in local_N.tolist()]

    def load(self, histories: Histories) -> Imported:
        """Bulk form of append: item and query are local ids. Users already there get only what is newer than their newest."""
        users = behaviours = 0
        with self._write() as txn:
            for row, user_id in enumerate(histories.user_id):
                user = self._find(txn, user_id)
                users += user is None
                user = user or _User(txn.stat(self._db["users"])["entries"])
                new = newer_rows(histories, row, user.newest_ms, user.next_request)
                if len(new):
                    user = self._insert(txn, user, new)
                behaviours += len(new)
                self._put_user(txn, user_id, user)
        return Imported(users, behaviours)

    def has_imported(self, version: str) -> bool:
        """True after `set_imported(version)`, in any process and for ever."""
        with self._env.begin(db=self._db["meta"]) as txn:
            return txn.get(f"imported {version}".encode()) is not None

    def set_imported(self, version: str) -> None:
        """Remember that every behaviour of a `pairs` artefact is here."""
        with self._write() as txn:
            txn.put(f"imported {version}".encode(), b"", db=self._db["meta"])

    @contextmanager
    def import_lock(self) -> Iterator[None]:
        """A `flock`: the kernel drops it when its process ends, however it ends."""
        with (self.path / "import.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _write(self) -> Iterator[lmdb.Transaction]:
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        except lmdb.MapFullError as error:
            raise HistoryFull(
                explain(f"history store {self.path}", got="no room left", expected=f"less than {self._max_gib:g} GiB",
                        fix="raise serve.max_history_gib and restart; nothing of this request was stored")
            ) from error  # fmt: skip

    def _check_format(self) -> None:
        with self._write() as txn:
            txn.put(b"format", FORMAT, overwrite=False, db=self._db["meta"])
            found = _get(txn, b"format", self._db["meta"])
        if found != FORMAT:
            raise ArtifactError(
                explain(f"history store {self.path}", got=f"format {found.decode()}", expected=f"format {FORMAT.decode()}",
                        fix="open it with the release that wrote it, or import into a new folder")
            )  # fmt: skip

    def _find(self, txn: lmdb.Transaction, user_id: str) -> _User | None:
        found = txn.get(_key(user_id), db=self._db["users"])
        return None if found is None else _User(*_USER.unpack(found))

    def _put_user(self, txn: lmdb.Transaction, user_id: str, user: _User) -> None:
        packed = _USER.pack(user.number, user.chunks, user.next_request, user.length, user.newest_ms)
        txn.put(_key(user_id), packed, db=self._db["users"])

    def _first_seen(self, txn: lmdb.Transaction, user: int, event_id: str | None) -> bool:
        if event_id is None:
            return True
        digest = hashlib.blake2b(_LOCAL.pack(user) + event_id.encode(), digest_size=20).digest()
        return txn.put(digest, b"", overwrite=False, db=self._db["events"])

    def _insert(self, txn: lmdb.Transaction, user: _User, new: UserHistory) -> _User:
        """Merge ordered rows of new requests into the chunks from their place on."""
        first, begun = user.chunks, None
        while first > 0 and (begun is None or begun > new.time_ms_L[0]):
            first -= 1
            begun = begun_at(_get(txn, _CHUNK_KEY.pack(user.number, first), self._db["chunks"]))
        rows, start = merge(self._chunks(txn, user, first), begun, new)
        for number, at in enumerate(range(0, len(rows), CHUNK), start=first):
            packed = pack(rows[at : at + CHUNK], int(start[at]))
            txn.put(_CHUNK_KEY.pack(user.number, number), packed, db=self._db["chunks"])
        return _User(
            number=user.number,
            chunks=first + -(-len(rows) // CHUNK),
            next_request=int(new.request_L.max()) + 1,
            length=user.length + len(new),
            newest_ms=max(user.newest_ms, int(new.time_ms_L.max())),
        )

    def _chunks(self, txn: lmdb.Transaction, user: _User, first: int) -> UserHistory:
        cursor = txn.cursor(db=self._db["chunks"])
        cursor.set_range(_CHUNK_KEY.pack(user.number, first))
        packed = cursor.iternext(keys=False, values=True)
        return concatenate([unpack(next(packed)) for _ in range(first, user.chunks)])

    def _intern(self, txn: lmdb.Transaction, kind: Kind, names: Sequence[str]) -> Int32[ndarray, " N"]:
        known, by_number = self._db[kind], self._db[_NAMES[kind]]
        size = txn.stat(known)["entries"]
        local = np.empty(len(names), np.int32)
        for i, name in enumerate(names):
            found = txn.get(_key(name), db=known)
            if found is None:
                found = _LOCAL.pack(size)
                txn.put(_key(name), found, db=known)
                txn.put(found, name.encode(), db=by_number, append=True)
                size += 1
            local[i] = _LOCAL.unpack(found)[0]
        return local


def _key(name: str) -> bytes:
    """LMDB keys have 1 to 511 bytes; longer names are kept whole beside their number and found by a digest."""
    key = b"." + name.encode()
    return key if len(key) <= _MAX_KEY else b"#" + hashlib.blake2b(key).digest()


def _get(txn: lmdb.Transaction, key: bytes, db: lmdb._Database | None = None) -> bytes:
    """A value that must be there."""
    found = txn.get(key, db=db)
    assert isinstance(found, bytes)
    return found
