"""Canonical tables: anyone's Parquet or CSV under four names, and what is right or wrong with it.

A dataset folder holds `events`, `items` and, if there are any, `queries` and `users`, each as `<table>.parquet`, `<table>.csv`,
`<table>.csv.gz` or a folder `<table>/` of such files. Columns: `seminar.schema.TABLES`; others are ignored with a note.
Parquet is read by row groups, so memory does not grow with the file; a CSV file is one part, so split large logs into several.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seminar.config import DataConfig
from seminar.data.coerce import check_columns, coerce, first_of_each
from seminar.data.columns import float_ids
from seminar.data.quarantine import Loaded, Rows, concat
from seminar.data.readers import csv_blocks, csv_names, gather, with_rejected
from seminar.datasets.base import Part, fingerprint_files, make_cut
from seminar.errors import DataError, explain
from seminar.schema import OPTIONAL_TABLES, TABLES

PART_ROWS = 1 << 20
"""Most rows in a part of a Parquet file, unless one row group alone holds more."""

_SUFFIXES = (".parquet", ".csv", ".csv.gz")


class TableSource:
    """The canonical layout as a `Source`; every file's columns and types are checked when it is opened."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self.folder = config.path
        self.files = find_tables(self.folder)
        self.notes = [
            note for name, files in self.files.items() for path in files for note in _check_file(name, path, self.folder)
        ]
        self._cut = make_cut(config, self._user_ids())

    def parts(self) -> list[Part]:
        """Runs of row groups of each events file, or a whole CSV file."""
        return [part for path in self.files["events"] for part in _parts(path, self._name(path))]

    def events(self, part: Part) -> Loaded:
        """EVENTS of one part; repeats of a row in another part stay."""
        return self._cut.apply(self._read("events", part))

    def items(self) -> Loaded:
        """ITEMS, the first row of each item_id."""
        return self._catalogue("items")

    def queries(self) -> Loaded:
        """QUERIES, the first row of each query_id."""
        return self._catalogue("queries")

    def users(self) -> Loaded:
        """USERS, the first row of each user_id."""
        return self._cut.apply(self._catalogue("users"))

    def fingerprint(self) -> str:
        """SHA-256 over all table files."""
        return fingerprint_files(self.folder, [path for files in self.files.values() for path in files])

    def _catalogue(self, name: str) -> Loaded:
        parts = [part for path in self.files[name] for part in _parts(path, self._name(path))]
        loaded = concat([self._read(name, part) for part in parts], TABLES[name])
        return first_of_each(loaded, name, f"{name}/") if len(parts) > 1 else loaded

    def _read(self, name: str, part: Part) -> Loaded:
        path = self.folder / part.file
        if path.suffix == ".parquet":
            return coerce(name, _read_row_groups(path, part, TABLES[name].names))
        columns = [c for c in csv_names(path) if c in TABLES[name].names]
        blocks = list(csv_blocks(path, part.file, name, columns))
        if not blocks:
            return Loaded(TABLES[name].empty_table(), concat([], TABLES[name]).quarantine)
        rows, rejected = gather(iter(blocks))
        return with_rejected(coerce(name, rows, rejects=float_ids(rows.table)), rejected)

    def _user_ids(self) -> Iterator[pa.Array]:
        for part in self.parts():
            yield self._read("events", part).table["user_id"]
        yield self._catalogue("users").table["user_id"]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def find_tables(folder: Path) -> dict[str, list[Path]]:
    """Files of every table, sorted by name; DataError if a required table is missing or there are two of one."""
    if not folder.is_dir():
        raise DataError(explain(f"{folder}", got="no such folder", expected="a dataset folder", fix="check data.path"))
    found = {name: _find_table(folder, name) for name in TABLES}
    for name, files in found.items():
        if not files and name not in OPTIONAL_TABLES:
            here = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
            expected = f"{name}.parquet, {name}.csv or a folder {name}/ of them"
            raise DataError(explain(f"{folder}: table {name!r}", got=here, expected=expected, fix="add or rename it"))
    return found


def _find_table(folder: Path, name: str) -> list[Path]:
    choices = [folder / f"{name}{suffix}" for suffix in _SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if (folder / name).is_dir():
        choices.append(folder / name)
    if len(choices) > 1:
        raise DataError(
            explain(
                f"{folder}: table {name!r}",
                got=" and ".join(p.name for p in choices),
                expected="one of them",
                fix="remove the others",
            )
        )
    if choices and choices[0].is_dir():
        files = [p for p in choices[0].rglob("*") if p.name.endswith(_SUFFIXES) and not p.name.startswith((".", "_"))]
        return sorted(p for p in files if p.is_file())
    return choices


def _check_file(name: str, path: Path, folder: Path) -> list[str]:
    file = path.relative_to(folder).as_posix()
    if path.suffix == ".parquet":
        schema = _open_parquet(path).schema_arrow
    else:
        schema = pa.schema([(column, pa.string()) for column in csv_names(path)])
    check_columns(name, schema, str(path))
    extra = [column for column in schema.names if column not in TABLES[name].names]
    return [f"{file}: columns {', '.join(extra)} are not used"] if extra else []


def _parts(path: Path, file: str) -> list[Part]:
    if path.suffix != ".parquet":
        return [Part(file, file)]
    meta = _open_parquet(path).metadata
    parts: list[Part] = []
    first, start = 0, 0
    row = 0
    for group in range(meta.num_row_groups):
        row += meta.row_group(group).num_rows
        last = group + 1 == meta.num_row_groups
        if last or row + meta.row_group(group + 1).num_rows - start > PART_ROWS:
            parts.append(Part(f"{file}#{first}", file, first, group + 1 - first, start))
            first, start = group + 1, row
    return parts


def _read_row_groups(path: Path, part: Part, columns: list[str]) -> Rows:
    parquet = _open_parquet(path)
    known = [c for c in parquet.schema_arrow.names if c in columns]
    table = parquet.read_row_groups(range(part.first, part.first + part.count), columns=known, use_threads=False)
    return Rows(table, part.file, part.first_row + np.arange(table.num_rows))


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise DataError(explain(f"{path}", got=problem, expected="a Parquet file", fix="write it again")) from error
