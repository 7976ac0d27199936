"""Taobao-MM: display advertising with histories of up to 1,000 items (arXiv 2512.07216), files as published.

`<split>_samples*.parquet` are ads shown (label 1 clicked), `<split>_user_features*.parquet` the histories at that time, oldest
first; ids are signed 64-bit hashes, 0 means nothing. The dump has no times and a user of both splits has two histories, so a
user here is "<split>:<id>": one history, its behaviours a second apart, then one request of all its samples. TIMES give each
split a day of its own, so that `holdout = "time"` with `test_from` between them is the published split.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int
from numpy import ndarray

from seminar.config import DataConfig
from seminar.data.coerce import coerce, first_of_each
from seminar.data.quarantine import Loaded, Rejects, Rows, concat, empty_quarantine
from seminar.datasets.base import Part, fingerprint_files, make_cut, token_lists
from seminar.errors import DataError, explain
from seminar.schema import ITEMS, QUERIES, USERS

TIMES = {"train": 1_735_689_600_000, "test": 1_735_776_000_000}
"""Unix ms of every sample of a split: 2025-01-01 and 2025-01-02 UTC, in place of unknown times."""

PART_ROWS = 20_000
"""User rows a part (20 million behaviours); 50 times as many sample rows. A row group larger than a part is read once a part."""

_USER, _ITEM, _CATEGORY = "129_1", "205", "206"
_HISTORY, _HISTORY_CATEGORY = "150_2_180", "151_2_180"
_USER_TOKENS = ("130_1", "130_2", "130_3", "130_4", "130_5")
_ITEM_TOKENS = ("206", "213", "214")
_ZERO = pa.scalar(0, pa.int64())


class TaobaoMM:
    """A folder of the published Parquet files as a `Source`."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self._folder = config.path
        self._users = {split: self._find(f"{split}_user_features*.parquet") for split in TIMES}
        self._samples = {split: self._find(f"{split}_samples*.parquet") for split in TIMES}
        self._items = self._find("item_features*.parquet")
        self._cut = make_cut(config, self._user_ids())

    def parts(self) -> list[Part]:
        """Runs of rows of each history file, then of each sample file."""
        found = []
        for files, rows in ((self._users, PART_ROWS), (self._samples, 50 * PART_ROWS)):
            for split, paths in files.items():
                for path in paths:
                    total = pq.read_metadata(path).num_rows
                    starts = range(0, total, rows)
                    found += [Part(f"{split}/{path.name}#{s}", path.name, s, min(rows, total - s), s) for s in starts]
        return found

    def events(self, part: Part) -> Loaded:
        """Behaviours of a run of users, or samples of a run of rows."""
        split = part.name.partition("/")[0]
        if part.file in {path.name for path in self._users[split]}:
            loaded = _histories(self._read(part, [_USER, _HISTORY]), split)
        else:
            loaded = _shown(self._read(part, [_USER, _ITEM, "label_0"]), split)
        return self._cut.apply(loaded)

    def items(self) -> Loaded:
        """ITEMS of item_features, and the category of items known from histories only."""
        parts = [_featured(Rows(batch, path.name, row_N)) for path in self._items for batch, row_N in _batches(path)]
        loaded = first_of_each(concat(parts, ITEMS), "items", "item_features")
        paths = [path for split in self._users.values() for path in split]
        seen = [_seen(batch) for path in paths for batch, _ in _batches(path, [_HISTORY, _HISTORY_CATEGORY])]
        rest = pa.concat_tables([ITEMS.empty_table(), *seen])
        first = rest.append_column("row", pa.array(np.arange(rest.num_rows))).group_by("item_id").aggregate([("row", "min")])
        rest = rest.take(first["row_min"].sort())
        unknown = pc.invert(pc.is_in(rest["item_id"], loaded.table["item_id"]))
        return Loaded(pa.concat_tables([loaded.table, rest.filter(unknown)]), loaded.quarantine)

    def queries(self) -> Loaded:
        """None: the ads were not searched for."""
        return Loaded(QUERIES.empty_table(), empty_quarantine())

    def users(self) -> Loaded:
        """USERS of both splits with their profile hashes."""
        parts = []
        for split, paths in self._users.items():
            for path in paths:
                for batch, row_N in _batches(path, [_USER, *_USER_TOKENS]):
                    tokens = token_lists({name: _known(batch[name]) for name in _USER_TOKENS})
                    canonical = pa.table({"user_id": _user(batch[_USER], split), "attributes": tokens})
                    parts.append(coerce("users", Rows(batch, path.name, row_N), canonical=canonical))
        return self._cut.apply(first_of_each(concat(parts, USERS), "users", "user_features"))

    def fingerprint(self) -> str:
        """SHA-256 over all files that are read."""
        split_files = [path for files in (self._users, self._samples) for paths in files.values() for path in paths]
        return fingerprint_files(self._folder, [*split_files, *self._items])

    def _find(self, pattern: str) -> list[Path]:
        found = sorted(self._folder.glob(pattern))
        if not found:
            raise DataError(
                explain(f"{self._folder}", got=f"no {pattern}", expected="the published Parquet files", fix="check data.path")
            )
        return found

    def _read(self, part: Part, columns: list[str]) -> Rows:
        end = part.first + part.count
        wanted = []
        for batch, row_N in _batches(self._folder / part.file, columns, part.first, end):
            low, high = np.searchsorted(row_N, [part.first, end])
            wanted.append(batch.slice(low, high - low))
        return Rows(pa.concat_tables(wanted), part.file, np.arange(part.first, end))

    def _user_ids(self) -> Iterator[pa.ChunkedArray]:
        for files in (self._users, self._samples):
            for split, paths in files.items():
                for path in paths:
                    for batch, _ in _batches(path, [_USER]):
                        yield _user(batch[_USER], split)


def _histories(rows: Rows, split: str) -> Loaded:
    history = rows.table[_HISTORY].combine_chunks()
    length_N = pc.fill_null(pc.list_value_length(history), 0).to_numpy(zero_copy_only=False)
    line_E = np.repeat(np.arange(len(length_N)), length_N)
    from_end_E = np.repeat(np.cumsum(length_N), length_N) - np.arange(len(line_E))
    raw = pa.table({_USER: rows.table[_USER].take(line_E), _HISTORY: history.flatten()})
    rejects = Rejects(len(line_E))
    rejects.add(pc.equal(raw[_HISTORY], _ZERO).to_numpy(), "padding (item 0)")
    canonical = {
        "user_id": _user(raw[_USER], split),
        "item_id": raw[_HISTORY],
        "time_ms": pa.array(TIMES[split] - 1000 * from_end_E),
        "label": pa.array(np.ones(len(line_E), np.int8)),
    }
    return coerce("events", Rows(raw, rows.file, rows.row_N[line_E]), canonical=pa.table(canonical), rejects=rejects)


def _shown(rows: Rows, split: str) -> Loaded:
    table = rows.table
    one_hot = table["label_0"].combine_chunks()
    rejects = Rejects(table.num_rows)
    pair_N = pc.fill_null(pc.equal(pc.list_value_length(one_hot), 2), False).to_numpy(zero_copy_only=False)
    first, second = (_element(one_hot, pair_N, at) for at in (0, 1))
    rejects.add(~pair_N | (first + second != 1) | (first * second != 0), "label_0 is not [1, 0] or [0, 1]")
    canonical = {
        "user_id": _user(table[_USER], split),
        "item_id": table[_ITEM],
        "time_ms": pa.array(np.full(table.num_rows, TIMES[split])),
        "request_id": pa.repeat(pa.scalar("samples"), table.num_rows),
        "label": pa.array(second),
    }
    return coerce("events", rows, canonical=pa.table(canonical), rejects=rejects)


def _element(lists: pa.ListArray, valid_N: Bool[ndarray, " N"], at: int) -> Int[ndarray, " N"]:
    out = np.full(len(lists), -1, np.int64)
    out[valid_N] = lists.filter(pa.array(valid_N)).flatten().to_numpy()[at::2]
    return out


def _featured(rows: Rows) -> Loaded:
    table = rows.table
    tokens = token_lists({name: _known(table[name]) for name in _ITEM_TOKENS})
    canonical = {"item_id": table[_ITEM], "category": _known(table[_CATEGORY]), "attributes": tokens}
    return coerce("items", rows, canonical=pa.table(canonical))


def _seen(batch: pa.Table) -> pa.Table:
    item, category = (batch[name].combine_chunks().flatten() for name in (_HISTORY, _HISTORY_CATEGORY))
    pairs = pa.table({"item": item, "category": category}).filter(pc.not_equal(item, _ZERO))
    pairs = pairs.group_by(["item", "category"], use_threads=False).aggregate([])
    known = _known(pairs["category"])
    columns = {
        "item_id": pairs["item"].cast(pa.string()),
        "text": pa.nulls(len(pairs), pa.string()),
        "category": known,
        "image": pa.nulls(len(pairs), pa.string()),
        "attributes": token_lists({_CATEGORY: known}),
    }
    return pa.table(columns, schema=ITEMS)


def _batches(
    path: Path, columns: list[str] | None = None, first: int = 0, end: int | None = None
) -> Iterator[tuple[pa.Table, Int[ndarray, " N"]]]:
    """Batches and their row numbers, of the row groups that hold rows first..end; the rest is not read."""
    file = pq.ParquetFile(path)
    end = file.metadata.num_rows if end is None else end
    row = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if row < end and row + size > first:
            at = row
            for batch in file.iter_batches(1 << 14, row_groups=[group], columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch]), at + np.arange(batch.num_rows)
                at += batch.num_rows
                if at >= end:
                    break
        row += size


def _known(hashes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integer hashes as exact decimal strings; 0 is null."""
    return pc.if_else(pc.equal(hashes, _ZERO), pa.scalar(None, pa.string()), hashes.cast(pa.string()))


def _user(hashes: pa.ChunkedArray, split: str) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(f"{split}:", hashes.cast(pa.string()), "")
