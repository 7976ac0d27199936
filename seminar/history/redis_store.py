"""Histories on a Redis or Valkey server: what several nodes share.

    seminar:history:<user>    header and rows (`redis_record.py`)       seminar:users      their ids, sorted
    seminar:events:<user>     digests of (event_id): what was accepted before
    seminar:items, queries    names and local ids (`redis_names.py`)
    seminar:meta              format, and the artefacts that were imported

An append looks (one round trip), merges here, and commits by a script that writes only if the header is still the one it saw,
else it looks again; new names cost a round trip, a late event another. A script is atomic, in memory and in the append-only file,
and its answer comes after the fsync. One server (or one with replicas to fail over to), not a Redis Cluster.
"""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32
from numpy import ndarray

from seminar.errors import ArtifactError, explain
from seminar.history.chunks import Intern, arrange, newer_rows, renumber
from seminar.history.redis_names import Names, key_of
from seminar.history.redis_record import HEAD_BYTES, Change, Head, grow, rows_of
from seminar.history.redis_server import connect, in_our_words, lease, readable
from seminar.history.store import (
    Appended,
    Durability,
    Event,
    Imported,
    Kind,
    StoredUser,
    StoreUnavailable,
    UserHistory,
    unknown_user,
)
from seminar.schema import NONE
from seminar.sequences import Histories

FORMAT = b"1"
ATTEMPTS = 100
"""Times an append begins again because another one to the same user came between; one of them always gets through."""
_USERS_AT_ONCE = 256
_ROWS_AT_ONCE = 200_000
_PREFIX = "seminar:"
_USERS, _META, _LOCK = (_PREFIX + name for name in ("users", "meta", "import-lock"))

# KEYS: history, events, users. ARGV: header before, header after, offset, rows, user id, digests.
_COMMIT = """
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[2] - 1) ~= ARGV[1] then return 0 end
if #ARGV[4] > 0 then redis.call('SETRANGE', KEYS[1], ARGV[3], ARGV[4]) end
redis.call('SETRANGE', KEYS[1], 0, ARGV[2])
if ARGV[1] == '' then redis.call('ZADD', KEYS[3], 0, ARGV[5]) end
for i = 6, #ARGV, 1000 do redis.call('SADD', KEYS[2], unpack(ARGV, i, math.min(i + 999, #ARGV))) end
return 1
"""


@dataclass(frozen=True)
class _Looked:
    """One moment of a user: the header, which events (by place) are not stored yet, and the local ids of known names."""

    head: Head
    fresh: list[int]
    local: dict[tuple[Kind, str], int]


class RedisHistoryStore:
    """HistoryStore over a server. Thread-safe; connections are made as they are needed and again when the server is back."""

    embedded = False

    def __init__(self, url: str, durability: Durability = "always", replicas: int = 0, timeout_s: float = 5.0) -> None:
        """StoreUnavailable if the server is not there or not set up as `durability` asks.

        replicas: that must have got a write before it counts. timeout_s: of each step of a call, most have one to three.
        """
        self._name, self._replicas, self._wait_ms = readable(url), replicas, int(500 * timeout_s)
        self._names = Names(self._name)
        self._client: Any = connect(url, durability, timeout_s, self._names.check)
        with in_our_words(self._name):
            self._client.hsetnx(_META, "format", FORMAT)
            found: Any = self._client.hget(_META, "format")
        if found != FORMAT:
            fix = "open it with the release that wrote it, or import into another database"
            raise ArtifactError(
                explain(self._name, got=f"format {found.decode()}", expected=f"format {FORMAT.decode()}", fix=fix)
            )

    @property
    def num_users(self) -> int:
        with in_our_words(self._name):
            return self._client.zcard(_USERS)

    def close(self) -> None:
        self._client.close()

    def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Merge behaviours in order, durably. HistoryFull if the server's memory is used up: then nothing was stored.

        StoreUnavailable: they may be stored or not; sent again with the same event ids they are stored once.
        """
        with in_our_words(self._name):
            for _ in range(ATTEMPTS):
                looked = self._look(user_id, events)
                fresh = [events[place] for place in looked.fresh]
                if not fresh and not (self._replicas and looked.head.packed):
                    return Appended(0, len(events), looked.head.length)
                rows = arrange(fresh, self._known_or_new(looked), looked.head.next_request)
                change = grow(looked.head, rows, lambda: self._rows(user_id))
                digests = [_digest(event.event_id) for event in fresh if event.event_id is not None]
                if self._commit([(user_id, change, digests)])[0]:
                    return Appended(len(fresh), len(events) - len(fresh), change.after.length)
        got = f"{ATTEMPTS} other appends to user {user_id!r} in between"
        raise StoreUnavailable(explain(self._name, got=got, expected="fewer", fix="retry in a moment"))

    def read(self, user_id: str) -> UserHistory:
        """The whole history, oldest first, in one round trip; UnknownUser if the store never saw the user."""
        with in_our_words(self._name):
            return renumber(self._rows(user_id))

    def version(self, user_id: str) -> bytes | None:
        """The history's header; it has a random stamp of its last change."""
        with in_our_words(self._name):
            return self._client.getrange(_history(user_id), 0, HEAD_BYTES - 1) or None

    def users(self, prefix: str, limit: int) -> list[StoredUser]:
        """Users whose id begins with `prefix`, in the order of their ids' bytes."""
        first, last = b"[" + prefix.encode(), b"(" + prefix.encode() + b"\xff" if prefix else b"+"
        with in_our_words(self._name), self._client.pipeline(transaction=False) as pipe:
            found = self._client.zrangebylex(_USERS, first, last, 0, limit)
            for user in found:
                pipe.getrange(_history(user.decode()), 0, HEAD_BYTES - 1)
            heads = [Head.unpack(packed) for packed in pipe.execute()]
        return [
            StoredUser(user.decode(), head.length, head.newest_ms if head.length else None)
            for user, head in zip(found, heads, strict=True)
        ]

    def intern(self, kind: Kind, names: Sequence[str]) -> Int32[ndarray, " N"]:
        """Local ids, given for ever; new names get the next numbers."""
        with in_our_words(self._name):
            return self._names.intern(self._client, kind, names)

    def names(self, kind: Kind, start: int = 0) -> list[str]:
        """All names whose local id is at least `start`, in order."""
        with in_our_words(self._name):
            return self._names.all(self._client, kind, start)

    def names_of(self, kind: Kind, local_N: Int[ndarray, " N"]) -> list[str | None]:
        """Name of each local id, None for -1."""
        wanted = np.unique(local_N[local_N != NONE]).tolist()
        with in_our_words(self._name):
            found = self._names.of(self._client, kind, wanted)
        known = dict(zip(wanted, found, strict=True))
        return [known.get(local) for local in local_N.tolist()]

    def load(self, histories: Histories) -> Imported:
        """Bulk form of append: item and query are local ids. Users already there get only what is newer than their newest.

        Some megabytes at once, each user atomically, so that an import that was killed goes on where it stopped.
        """
        users = behaviours = 0
        left = list(range(len(histories.user_id)))
        with in_our_words(self._name):
            while left:
                many = 1 + int(np.searchsorted(np.cumsum(histories.lengths[left[:_USERS_AT_ONCE]]), _ROWS_AT_ONCE))
                part, left = left[:many], left[many:]
                changes = self._newer(histories, part)
                stored = self._commit([(histories.user_id[row], change, []) for row, change in changes])
                # Whom an append came to in between is looked at again.
                left += [row for (row, _), ok in zip(changes, stored, strict=True) if not ok]
                done = [change for (_, change), ok in zip(changes, stored, strict=True) if ok]
                users += sum(not change.before.packed for change in done)
                behaviours += sum(change.after.length - change.before.length for change in done)
        return Imported(users, behaviours)

    def has_imported(self, version: str) -> bool:
        """True after `set_imported(version)`, in any process and for ever."""
        with in_our_words(self._name):
            return bool(self._client.hexists(_META, f"imported {version}"))

    def set_imported(self, version: str) -> None:
        """Remember that every behaviour of a `pairs` artefact is here."""
        with in_our_words(self._name):
            self._client.hset(_META, f"imported {version}", b"")

    def import_lock(self) -> AbstractContextManager[None]:
        """A lease that its holder renews; without news from the holder it ends after ten seconds."""
        return lease(self._client, _LOCK, self._name)

    def _look(self, user_id: str, events: Sequence[Event]) -> _Looked:
        ids = [event.event_id for event in events if event.event_id is not None]
        names: dict[Kind, list[str]] = {
            "items": list({event.item_id for event in events}),
            "queries": list({event.query for event in events if event.query is not None}),
        }
        with self._client.pipeline(transaction=False) as pipe:
            # The header first: whatever changes behind it, the commit finds out.
            pipe.getrange(_history(user_id), 0, HEAD_BYTES - 1)
            if ids:
                pipe.smismember(_events(user_id), [_digest(name) for name in ids])
            asked = [kind for kind in names if names[kind]]
            for kind in asked:
                pipe.hmget(key_of(kind), names[kind])
            packed, *answers = pipe.execute()
        seen = {name for name, there in zip(ids, answers.pop(0), strict=True) if there} if ids else set()
        fresh = []
        for place, event in enumerate(events):
            if event.event_id not in seen:
                fresh.append(place)
            if event.event_id is not None:
                seen.add(event.event_id)
        found = zip(asked, answers, strict=True)
        local = {(kind, name): int(i) for kind, ids in found for name, i in zip(names[kind], ids, strict=True) if i is not None}
        for (kind, name), told in local.items():
            self._names.tell(kind, told, name)
        return _Looked(Head.unpack(packed), fresh, local)

    def _known_or_new(self, looked: _Looked) -> Intern:
        def intern(kind: Kind, names: Sequence[str]) -> Int32[ndarray, " N"]:
            new = list(dict.fromkeys(name for name in names if (kind, name) not in looked.local))
            if new:
                looked.local.update(zip([(kind, name) for name in new], self.intern(kind, new).tolist(), strict=True))
            return np.array([looked.local[kind, name] for name in names], np.int32)

        return intern

    def _commit(self, changes: Sequence[tuple[str, Change, Sequence[bytes]]]) -> list[bool]:
        """Which of these changes (user, change, digests of events) were made: those whose header was still the same."""
        with self._client.pipeline(transaction=False) as pipe:
            for user, change, digests in changes:
                keys = (_history(user), _events(user), _USERS)
                arguments = (change.before.packed, change.after.packed, change.offset, change.rows, user, *digests)
                pipe.eval(_COMMIT, len(keys), *keys, *arguments)
            if self._replicas and changes:
                pipe.wait(self._replicas, self._wait_ms)
            answers = pipe.execute()
        if self._replicas and changes and (reached := answers.pop()) < self._replicas:
            fix = "see to the replicas, then send it again with the same event ids"
            raise StoreUnavailable(explain(self._name, got=f"{reached} replicas", expected=str(self._replicas), fix=fix))
        return [bool(answer) for answer in answers]

    def _newer(self, histories: Histories, rows: Sequence[int]) -> list[tuple[int, Change]]:
        """Rows of a shard that bring something, a user or behaviours, and the change that brings it."""
        with self._client.pipeline(transaction=False) as pipe:
            for row in rows:
                pipe.getrange(_history(histories.user_id[row]), 0, HEAD_BYTES - 1)
            heads = [Head.unpack(packed) for packed in pipe.execute()]
        newer = [newer_rows(histories, row, head.newest_ms, head.next_request) for row, head in zip(rows, heads, strict=True)]
        # What is newer than the newest is never late.
        found = [(row, grow(head, new, UserHistory.empty)) for row, head, new in zip(rows, heads, newer, strict=True)]
        return [(row, change) for row, change in found if change.after is not change.before]

    def _rows(self, user_id: str) -> UserHistory:
        packed = self._client.get(_history(user_id))
        if packed is None:
            raise unknown_user(user_id)
        return rows_of(packed)


def _history(user_id: str) -> str:
    return f"{_PREFIX}history:{user_id}"


def _events(user_id: str) -> str:
    return f"{_PREFIX}events:{user_id}"


def _digest(event_id: str) -> bytes:
    return hashlib.blake2b(event_id.encode(), digest_size=16).digest()
