"""Packed keys of every served user, on disk and mapped by all replicas of a node: a request packs only what is new.

    users     digest of user_id -> levels and length           chunks     digest, chunk number -> CHUNK behaviours

A chunk holds 8-bit keys as the scan reads them, aligned for it and the size of a cache block, and the catalogue rows they were
made from. Stored rows are compared with the history at every use: what follows the first difference is packed again, so a late
event, a shortened history or a restored backup cannot give keys of another history. Keys are a cache of one bundle: the folder is
stamped with its version and with the boot of the machine (commits do not wait for the disk), and any other stamp is refused.
"""

import hashlib
import logging
import shutil
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
from jaxtyping import Int32, UInt8
from numpy import ndarray

from seminar.errors import VersionMismatch, explain
from seminar.kernels import int8, simd
from seminar.retrieval.base import KeySource
from seminar.retrieval.int8 import Int8Index, Levels, PackedKeys, Runs, packed_shape
from seminar.retrieval.key_space import KeySpace

logger = logging.getLogger(__name__)

CHUNK = 4096
"""Behaviours a chunk: 256 KiB of keys at d = 64, so that keys and the scores of 8 targets fit a second-level cache of 1 MiB."""
WRITE_BACK = 64
"""New behaviours that are worth a write; fewer are packed again at the next request, .2 us each."""
MOST_CLIPPED = 0.001
"""Share of a run's values (and FEW_CLIPPED more) beyond the user's levels from which all are packed again with new ones."""
FEW_CLIPPED = 8
GROWN = 4
"""Levels are made anew when a history is so many times as long as the one they were made from: a short one says little."""
FOLDER = "packed-keys"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_CHUNK_KEY = struct.Struct(">16sI")
_HEAD = struct.Struct("<I44x")
"""Behaviours in the chunk. LMDB puts large values 16 bytes behind the start of a page: after 48 more, keys are aligned."""


@dataclass(frozen=True)
class _Chunk:
    """Views into the mapped file."""

    packed: UInt8[ndarray, "B words 16 4"]
    item_N: Int32[ndarray, " N"]
    query_N: Int32[ndarray, " N"]

    def __len__(self) -> int:
        return len(self.item_N)


class StoredKeys:
    """A history in runs of packed keys: mapped chunks, and what was packed for this request alone."""

    def __init__(self, pieces: list[tuple[UInt8[ndarray, "_ words 16 4"], int]], levels: Levels) -> None:
        self._pieces, self.levels = pieces, levels
        self.length = sum(rows for _, rows in pieces)
        self._runs = Runs.of([packed.ctypes.data for packed, _ in pieces], [rows for _, rows in pieces])

    @property
    def dim(self) -> int:
        return len(self.levels.centre_d)

    def runs(self, targets: int) -> Runs:
        """A chunk is a cache block for any number of targets."""
        return self._runs

    def level_LD(self) -> Int32[ndarray, "L D"]:
        """Levels of all behaviours."""
        parts = [PackedKeys(packed, rows, self.levels).level_LD() for packed, rows in self._pieces]
        return np.concatenate([*parts, np.empty((0, self.dim), np.int32)])


class KeyStore:
    """8-bit merged keys by user. One folder a bundle on a local disk; any number of processes. Thread-safe."""

    def __init__(self, folder: Path | str, space: KeySpace, stamp: str, max_gib: float = 64.0) -> None:
        self.space, self._full = space, False
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Lost pages cost a repacking, so nothing waits for the disk; another boot may find half a commit and starts anew.
        self._env = lmdb.open(str(self._folder), map_size=int(max_gib * 2**30), max_dbs=3, max_readers=1024, sync=False)
        self._env.reader_check()
        self._users, self._chunks, meta = (self._env.open_db(name) for name in (b"users", b"chunks", b"meta"))
        expected = f"{stamp}, d {space.dim}, boot {_BOOT.read_text().strip() if _BOOT.is_file() else 'unknown'}"
        with self._env.begin(write=True, db=meta) as txn:
            txn.put(b"stamp", expected.encode(), overwrite=False)
            found = bytes(txn.get(b"stamp") or b"").decode()
        if found != expected:
            self._env.close()
            fix = "delete the folder: keys are packed again at each user's next request"
            raise VersionMismatch(explain(f"key store {folder}", got=found, expected=expected, fix=fix))

    def close(self) -> None:
        """Let go of the map; indexes handed out before must be done."""
        self._env.close()

    @contextmanager
    def index(self, user_id: str, history: KeySource) -> Iterator[Int8Index]:
        """Packed keys of the user's history, for the length of a `with`: the mapped memory may be written again afterwards."""
        user = hashlib.blake2b(user_id.encode(), digest_size=16).digest()
        item_L, query_L = (rows.numpy().astype(np.int32, copy=False) for rows in (history.item_L, history.query_L))
        with self._env.begin(buffers=True) as txn:
            seen = bytes(txn.get(user, db=self._users) or b"")
            levels = _levels(seen, len(item_L))
            chunks = self._valid(txn, user, item_L, query_L) if levels else []
            kept = sum(len(chunk) for chunk in chunks)
            pieces = [(chunk.packed, min(len(chunk), len(item_L) - i * CHUNK)) for i, chunk in enumerate(chunks)]
            new_Nd = None
            if levels is not None and kept < len(item_L):
                new_Nd = self.space.merged(history[kept:]).numpy()
                tail, clipped = _pack(new_Nd, levels, None)
                pieces.append((tail, len(new_Nd)))
                if clipped > MOST_CLIPPED * new_Nd.size + FEW_CLIPPED:
                    levels = None
            if levels is None:
                chunks, kept, new_Nd = [], 0, self.space.merged(history[:]).numpy()
                levels = Levels.of(new_Nd)
                pieces = [(_pack(new_Nd, levels, None)[0], len(new_Nd))]
            if new_Nd is not None and not levels.flat and (len(new_Nd) >= WRITE_BACK or not kept):
                self._keep(user, seen, levels, chunks, new_Nd, item_L, query_L)
            yield Int8Index(StoredKeys(_in_blocks(pieces), levels))

    def _keep(
        self,
        user: bytes,
        seen: bytes,
        levels: Levels,
        chunks: list[_Chunk],
        new_Nd: ndarray,
        item_L: ndarray,
        query_L: ndarray,
    ) -> None:
        """Write, unless another process has given the user other levels since; without room, go on without."""
        made_from = _made_from(seen) if chunks else len(item_L)
        record = np.array([made_from, levels.step, *levels.centre_d], np.float32).tobytes()
        try:
            with self._env.begin(write=True) as txn:
                if bytes(txn.get(user, db=self._users) or b"") == seen:
                    txn.put(user, record, db=self._users)
                    self._write(txn, user, levels, chunks, new_Nd, item_L, query_L)
        except lmdb.MapFullError:
            if not self._full:
                fix = "raise serve.max_keys_gib, or delete the folder: keys are a cache"
                logger.warning(explain(f"key store {self._folder}", got="no room left", expected="room", fix=fix))
            self._full = True

    def _valid(
        self, txn: lmdb.Transaction, user: bytes, item_L: Int32[ndarray, " L"], query_L: Int32[ndarray, " L"]
    ) -> list[_Chunk]:
        """Stored chunks up to the first that differs from the history; the last may hold more than the history does."""
        chunks: list[_Chunk] = []
        at = 0
        while at < len(item_L):
            value = txn.get(_CHUNK_KEY.pack(user, len(chunks)), db=self._chunks)
            if value is None:
                break
            chunk = self._unpack(value)
            shared = min(len(chunk), len(item_L) - at)
            span = slice(at, at + shared)
            same_items = np.array_equal(chunk.item_N[:shared], item_L[span])
            if not (same_items and np.array_equal(chunk.query_N[:shared], query_L[span])):
                break
            chunks.append(chunk)
            at += shared
            if len(chunk) < CHUNK:
                break
        return chunks

    def _write(
        self,
        txn: lmdb.Transaction,
        user: bytes,
        levels: Levels,
        chunks: list[_Chunk],
        new_Nd: ndarray,
        item_L: ndarray,
        query_L: ndarray,
    ) -> None:
        """Fill the last chunk and add others; what was packed before is copied, not packed again."""
        last = chunks[-1] if chunks and len(chunks[-1]) < CHUNK else None
        first = len(chunks) - (last is not None)
        start = first * CHUNK
        held = len(last) if last is not None else 0
        for number, at in enumerate(range(start, len(item_L), CHUNK), start=first):
            rows = slice(at, min(at + CHUNK, len(item_L)))
            here = new_Nd[max(at - start - held, 0) : rows.stop - start - held]
            packed, _ = _pack(here, levels, last if number == first else None)
            parts = (_HEAD.pack(rows.stop - at), packed.tobytes(), item_L[rows].tobytes(), query_L[rows].tobytes())
            txn.put(_CHUNK_KEY.pack(user, number), b"".join(parts), db=self._chunks)
        behind = -(-len(item_L) // CHUNK)
        while txn.delete(_CHUNK_KEY.pack(user, behind), db=self._chunks):
            behind += 1

    def _unpack(self, value: bytes | memoryview) -> _Chunk:
        (rows,) = _HEAD.unpack_from(value)
        shape = packed_shape(rows, self.space.dim)
        size = int(np.prod(shape))
        packed = np.frombuffer(value, np.uint8, size, _HEAD.size).reshape(shape)
        columns = np.frombuffer(value, np.int32, 2 * rows, _HEAD.size + size)
        return _Chunk(packed, columns[:rows], columns[rows:])


def open_shared(root: Path, space: KeySpace, stamp: str, max_gib: float = 64.0) -> KeyStore:
    """The store of one bundle in `root`/packed-keys, opened once a process, as LMDB demands; those of older bundles but one go.

    A folder left by another boot of the machine is replaced. Nothing else under `root` is touched.
    """
    folder = root.resolve() / FOLDER / stamp
    with _opening:
        store = _open.get(folder)
        if store is None:
            try:
                store = KeyStore(folder, space, stamp, max_gib)
            except VersionMismatch:
                shutil.rmtree(folder, ignore_errors=True)
                store = KeyStore(folder, space, stamp, max_gib)
            _open[folder] = store
            others = [path for path in folder.parent.iterdir() if path != folder and path not in _open]
            for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-1]:
                # Whoever still has it mapped keeps what it mapped.
                shutil.rmtree(path, ignore_errors=True)
        return store


_open: "weakref.WeakValueDictionary[Path, KeyStore]" = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _levels(record: bytes, length: int) -> Levels | None:
    """Levels of a user's record; none where there is none, or the history has outgrown what they were made from."""
    if not record or length > GROWN * _made_from(record):
        return None
    values = np.frombuffer(record, np.float32).copy()
    return Levels(values[2:], values[1])


def _made_from(record: bytes) -> int:
    return int(np.frombuffer(record, np.float32, 1)[0])


def _pack(key_Nd: ndarray, levels: Levels, behind: _Chunk | None) -> tuple[UInt8[ndarray, "B words 16 4"], int]:
    """Packed keys, behind those of a chunk where one is given, and how many values were clipped."""
    held = 0 if behind is None else len(behind)
    packed = simd.aligned(packed_shape(held + len(key_Nd), key_Nd.shape[1]), np.uint8)
    if behind is not None:
        packed[: len(behind.packed)] = behind.packed
    return packed, int8.pack(key_Nd, levels.centre_d, levels.step, packed, held)


def _in_blocks(pieces: list[tuple[ndarray, int]]) -> list[tuple[ndarray, int]]:
    """Pieces of at most CHUNK behaviours."""
    step = CHUNK // int8.LANES
    return [
        (packed[at : at + step], min(rows - at * int8.LANES, CHUNK))
        for packed, rows in pieces
        for at in range(0, -(-rows // int8.LANES), step)
    ]
