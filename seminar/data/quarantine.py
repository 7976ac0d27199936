"""Rejected rows: every one is kept with the file and row it came from, a reason that is counted, and its content.

Python touches a row here only because it was rejected; everything that passes stays in Arrow.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int
from numpy import ndarray

from seminar.schema import QUARANTINE

MAX_CONTENT = 10_000
"""Characters of a value kept in `content`; longer ones end in an ellipsis."""


@dataclass(frozen=True)
class Loaded:
    """What a reader found: rows of one canonical table that are right, and the rejected ones."""

    table: pa.Table
    quarantine: pa.Table


@dataclass(frozen=True)
class Rows:
    """Raw rows as a file holds them. file: path relative to the dataset folder. row_N: their 0-based numbers in it."""

    table: pa.Table
    file: str
    row_N: Int[ndarray, " N"]


class Rejects:
    """Reasons collected over the rows of one raw table; the first reason a row gets is the one it keeps."""

    def __init__(self, num_rows: int) -> None:
        self._code_N = np.zeros(num_rows, np.int16)
        self._reasons: list[str] = []

    def add(self, bad_N: Bool[ndarray, " N"], reason: str) -> None:
        """Mark rows, a boolean a row of the raw table."""
        if bad_N.any():
            self._reasons.append(reason)
            self._code_N[bad_N & (self._code_N == 0)] = len(self._reasons)

    @property
    def kept_N(self) -> Bool[ndarray, " N"]:
        """True for rows without a reason."""
        return self._code_N == 0

    def split(self, good: pa.Table, rows: Rows, table: str) -> Loaded:
        """Kept rows of `good`, and the rest as QUARANTINE rows of canonical table `table`; `good` and `rows` are aligned."""
        bad = np.flatnonzero(self._code_N)
        if not len(bad):
            return Loaded(good, empty_quarantine())
        reasons = [self._reasons[code - 1] for code in self._code_N[bad]]
        rejected = quarantine_rows(table, rows.file, rows.row_N[bad], reasons, contents(rows.table.take(bad)))
        return Loaded(good.filter(pa.array(self.kept_N)), rejected)


def quarantine_rows(table: str, file: str, row_N: Int[ndarray, " N"], reasons: Sequence[str], content: Sequence[str]) -> pa.Table:
    """A QUARANTINE table; rows are 0-based in the file and may be -1 where a reader cannot know them."""
    n = len(reasons)
    return pa.table(
        [pa.array([table] * n), pa.array([file] * n), row_N.astype(np.int64), list(reasons), list(content)], schema=QUARANTINE
    )


def empty_quarantine() -> pa.Table:
    """No rejected row."""
    return QUARANTINE.empty_table()


def concat(parts: Iterable[Loaded], schema: pa.Schema) -> Loaded:
    """All rows of several readers, in their order."""
    parts = list(parts)
    return Loaded(
        pa.concat_tables([schema.empty_table(), *(p.table for p in parts)]),
        pa.concat_tables([empty_quarantine(), *(p.quarantine for p in parts)]),
    )


def count_reasons(quarantine: pa.Table, by: str = "reason") -> dict[str, int]:
    """Rejected rows per reason (or per `table`), most frequent first."""
    counts = pc.value_counts(quarantine[by].combine_chunks())
    pairs = zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def contents(rows: pa.Table) -> list[str]:
    """Each row as JSON; bytes that are not UTF-8 are escaped as \\xNN, long values cut at MAX_CONTENT characters."""
    return [json.dumps({k: _plain(v) for k, v in row.items()}, ensure_ascii=False) for row in rows.to_pylist()]


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            value = value.decode(errors="backslashreplace")
    if isinstance(value, str) and len(value) > MAX_CONTENT:
        return value[:MAX_CONTENT] + "…"
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list):
        return [_plain(v) for v in value[:MAX_CONTENT]]
    return str(value)
