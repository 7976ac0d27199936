"""What a replica keeps of users between requests: their histories in rows of a bundle, made ready to be scored.

An entry is valid for one bundle and one version of the stored history, which every request asks the store for first: so an event
that any replica appended is seen by the next request, and an old bundle's entries are left to age. Least recently used users go
when their bytes pass the limit.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry(Generic[T]):
    version: bytes
    value: T
    size: int


class UserCache(Generic[T]):
    """Values by (bundle version, user id), at most `limit_bytes` of them. Thread-safe. Counters are read as they stand."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.hits = self.misses = self.evictions = self.size_bytes = 0
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, bundle: str, user_id: str, version: bytes) -> T | None:
        """The value kept for this version of the user's history; another version counts as a miss."""
        key = (bundle, user_id)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.version != version:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry.value

    def peek(self, bundle: str, user_id: str, version: bytes) -> T | None:
        """As `get`, but counted as neither, and no newer for it."""
        entry = self._entries.get((bundle, user_id))
        return None if entry is None or entry.version != version else entry.value

    def put(self, bundle: str, user_id: str, version: bytes, value: T, size: int) -> None:
        """Keep a value made from what was read after `version` was asked for; one larger than the limit is not kept."""
        key = (bundle, user_id)
        with self._lock:
            old = self._entries.pop(key, None)
            self.size_bytes -= 0 if old is None else old.size
            if size > self.limit_bytes:
                return
            self._entries[key] = _Entry(version, value, size)
            self.size_bytes += size
            while self.size_bytes > self.limit_bytes:
                self.size_bytes -= self._entries.popitem(last=False)[1].size
                self.evictions += 1
