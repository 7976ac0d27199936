"""What every dump is turned into: a Source, whose event log comes in independent parts that any worker can read alone."""

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from seminar.artifacts import sha256_of
from seminar.config import DataConfig
from seminar.data.quarantine import Loaded, Rows
from seminar.errors import DataError, explain
from seminar.hashing import stable_hash


@dataclass(frozen=True)
class Part:
    """An independent piece of an event log: small, picklable, meaningful only to the source that made it.

    name: unique in the source and stable between runs. file: relative to the dataset folder. first, count: row groups, a
    week, or bucket `first` of `count` buckets of users. first_row: row in the file where it starts, where that is known.
    """

    name: str
    file: str
    first: int = 0
    count: int = 1
    first_row: int = 0


@runtime_checkable
class Source(Protocol):
    """A data set. Its methods are pure, and hold one part, or one catalogue, in memory; instances pickle to a few bytes.

    Rows have the schemas of `seminar.schema`. Exact duplicates are removed inside a part; a loader of a dump known to repeat
    rows cuts its parts so that repeats meet in one. `tables` cannot: repeats across its files are dropped per user by prepare.
    """

    def parts(self) -> list[Part]:
        """All pieces of the event log, in a fixed order."""
        ...

    def events(self, part: Part) -> Loaded:
        """EVENTS of one part in file order (ties of time keep it), cut to `data.until` and `data.max_users`."""
        ...

    def items(self) -> Loaded:
        """ITEMS: every item that has metadata; events may name others."""
        ...

    def queries(self) -> Loaded:
        """QUERIES: query texts."""
        ...

    def users(self) -> Loaded:
        """USERS: known users and their attributes, cut to `data.max_users`; events may name others."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything read: equal for equal content wherever it lies, so that a job knows its input has changed."""
        ...


@dataclass(frozen=True)
class Cut:
    """The rows of a log that a configuration keeps; until_ms: Unix ms, exclusive. max_hash: largest `stable_hash` of a user."""

    until_ms: int | None = None
    max_hash: int | None = None

    def keep(self, user_id: pa.ChunkedArray, time_ms: pa.ChunkedArray | None = None) -> Bool[ndarray, " N"]:
        """True for rows of sampled users, before `until`."""
        keep_N = np.ones(len(user_id), bool)
        if self.until_ms is not None and time_ms is not None:
            keep_N &= time_ms.to_numpy() < self.until_ms
        if self.max_hash is not None:
            keep_N &= stable_hash(user_id) <= np.uint64(self.max_hash)
        return keep_N

    def apply(self, loaded: Loaded) -> Loaded:
        """The rows of EVENTS or USERS that are kept; quarantined rows stay as they are."""
        if self == Cut():
            return loaded
        time_ms = loaded.table["time_ms"] if "time_ms" in loaded.table.column_names else None
        keep_N = self.keep(loaded.table["user_id"], time_ms)
        return Loaded(loaded.table.filter(pa.array(keep_N)), loaded.quarantine)


def make_cut(config: DataConfig, user_ids: Iterable[pa.Array | pa.ChunkedArray]) -> Cut:
    """The N users of smallest `stable_hash`, whatever order or part they come in; `user_ids` is read only if there is a limit."""
    until = config.until
    until_ms = None
    if until is not None:
        until_ms = int((until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() * 1000)
    if config.max_users is None:
        return Cut(until_ms)
    smallest = np.empty(0, np.uint64)
    for block in user_ids:
        found = stable_hash(pc.unique(block).drop_null())
        smallest = np.unique(np.concatenate([smallest, found]))[: config.max_users]
    return Cut(until_ms, int(smallest[-1]) if len(smallest) else 0)


def in_bucket(user_ids: pa.Array | pa.ChunkedArray, part: Part) -> Bool[ndarray, " N"]:
    """True for rows of the users in bucket `part.first` of `part.count`; null ids belong to bucket 0."""
    if part.count == 1:
        return np.ones(len(user_ids), bool)
    hashes = stable_hash(pc.fill_null(user_ids, pa.scalar(b"", user_ids.type)))
    bucket = (hashes % np.uint64(part.count)).astype(np.int64)
    return np.where(pc.is_null(user_ids).to_numpy(zero_copy_only=False), 0, bucket) == part.first


def select(rows: Rows, keep_N: Bool[ndarray, " N"]) -> Rows:
    """Some of the rows, with their numbers."""
    return Rows(rows.table.filter(pa.array(keep_N)), rows.file, rows.row_N[keep_N])


def join_text(*columns: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The values of a row that are not null, separated by spaces; null if all are. (Arrow's own joining with
    null_handling = "skip" drops such rows.)"""
    pieces = [pc.fill_null(pc.binary_join_element_wise("", values, " "), "") for values in columns]
    joined = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*pieces, ""), 1)
    return pc.if_else(pc.equal(joined, ""), pa.scalar(None, pa.string()), joined)


def token_lists(columns: dict[str, pa.Array | pa.ChunkedArray]) -> pa.Array:
    """One list of tokens `field=value` a row, leaving out nulls; the list column of ITEMS and USERS."""
    tokens = [pc.binary_join_element_wise(f"{field}=", values.cast(pa.string()), "") for field, values in columns.items()]
    grid = pa.concat_arrays([t.combine_chunks() if isinstance(t, pa.ChunkedArray) else t for t in tokens])
    rows = len(grid) // len(tokens)
    by_row = grid.take(pa.array(np.arange(len(grid)).reshape(len(tokens), rows).T.ravel()))
    counts_N = pc.is_valid(by_row).to_numpy(zero_copy_only=False).reshape(rows, len(tokens)).sum(1)
    offsets = np.concatenate([[0], np.cumsum(counts_N)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), by_row.drop_null())


def user_buckets(folder: Path, file: str, bytes_per_part: int) -> list[Part]:
    """One part per bucket of users. Every part scans the file and keeps its users, so rows of one user meet in one part
    wherever they lie; the price is one scan a part."""
    count = max(1, -(-(folder / file).stat().st_size // bytes_per_part))
    return [Part(f"{file}#{k}of{count}", file, k, count) for k in range(count)]


def required_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of `names` that exists in the dump's folder."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) if folder.is_dir() else "no such folder"
    raise DataError(
        explain(f"{folder}", got=found or "an empty folder", expected=" or ".join(names), fix="check data.path and data.source")
    )


def fingerprint_files(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over the relative names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


_LOADERS = {
    "tables": ("seminar.data.table_source", "TableSource"),
    "complete_journey": ("seminar.datasets.complete_journey", "CompleteJourney"),
    "kuaisar": ("seminar.datasets.kuaisar", "KuaiSAR"),
    "amazon": ("seminar.datasets.amazon", "AmazonReviews"),
    "jdsearch": ("seminar.datasets.jdsearch", "JDsearch"),
    "taobao_mm": ("seminar.datasets.taobao_mm", "TaobaoMM"),
}


def open_source(config: DataConfig) -> Source:
    """The loader that `data.source` names; raises DataError if its files are not there or cannot be of that layout."""
    module, name = _LOADERS[config.source]
    return getattr(importlib.import_module(module), name)(config)
