"""Files of a job that may be killed at any moment: whole or absent, and one file a part from which each shard is read alone."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seminar.hashing import stable_hash


def write_by_shard(table: pa.Table, num_shards: int, target: Path) -> None:
    """One Arrow file whose record batch s holds, in their order, the rows of the users of shard s."""
    shard = (stable_hash(table["user_id"]) % np.uint64(num_shards)).astype(np.int64)
    order = np.argsort(shard, kind="stable")
    bounds = np.searchsorted(shard[order], np.arange(num_shards + 1))
    table = table.take(pa.array(order))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with replacing(target) as path, pa.ipc.new_file(path, table.schema, options=options) as writer:
        for start, stop in pairwise(bounds):
            piece = table.slice(start, stop - start).combine_chunks().to_batches()
            writer.write_batch(piece[0] if piece else pa.RecordBatch.from_pylist([], schema=table.schema))


def read_bucket(path: Path, shard: int) -> pa.Table:
    """The rows of one shard, read alone."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        return pa.Table.from_batches([reader.get_batch(shard)])


def write_parquet(table: pa.Table, target: Path, row_group_size: int | None = None) -> None:
    """The table as one Parquet file; the same bytes for the same rows."""
    with replacing(target) as path:
        pq.write_table(table, path, compression="zstd", row_group_size=row_group_size)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A scratch path that becomes `target` at the end: a reader never sees half a file, whatever is killed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f"_{target.name}.{uuid.uuid4().hex}")
    try:
        yield scratch
        with open(scratch, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
