"""How often every item was taken in every week: counted a shard at a time, added up exactly whatever the shards were."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from numpy import ndarray

from seminar.schema import MS_PER_WEEK

COUNTS = pa.schema([pa.field("row", pa.int32()), pa.field("week", pa.int32()), pa.field("count", pa.int64())])
"""Behaviours by catalogue row and week, ascending in both, weeks without any left out."""


def count_by_week(item: Int[ndarray, " N"], time_ms: Int[ndarray, " N"]) -> pa.Table:
    """COUNTS of N behaviours."""
    columns = [pa.array(item, pa.int32()), pa.array(time_ms // MS_PER_WEEK, pa.int32()), pa.repeat(pa.scalar(1), len(item))]
    return _merge([pa.table(columns, schema=COUNTS)])


def add_up(counts: Iterable[pa.Table]) -> pa.Table:
    """COUNTS of all shards together from those of each.

    Memory: about three times the sum. Shards are merged whenever they outgrow what is merged, so each row is sorted a logarithmic
    number of times.
    """
    merged, waiting = COUNTS.empty_table(), []
    for table in counts:
        waiting.append(table)
        if sum(map(len, waiting)) > len(merged):
            merged, waiting = _merge([merged, *waiting]), []
    return _merge([merged, *waiting])


def weekly_lists(counts: pa.Table, num_rows: int) -> tuple[pa.ListArray, pa.ListArray, Int[ndarray, " I"]]:
    """Columns `week` and `week_count` of a catalogue with `num_rows` rows, and their sums, from its COUNTS."""
    row, count = counts["row"].to_numpy(), counts["count"].to_numpy()
    offsets = pa.array(np.searchsorted(row, np.arange(num_rows + 1)), pa.int32())
    lists = [pa.ListArray.from_arrays(offsets, counts[name].combine_chunks().cast(pa.int32())) for name in ("week", "count")]
    total = np.zeros(num_rows, np.int64)
    np.add.at(total, row, count)
    return lists[0], lists[1], total


def flat_weeks(items: pa.Table) -> tuple[Int[ndarray, " I1"], Int[ndarray, " W"], Int[ndarray, " W"]]:
    """Columns `week` and `week_count` of CATALOGUE_ITEMS as offsets of each item and flat values."""
    week, count = (items[name].combine_chunks() for name in ("week", "week_count"))
    offsets = np.append(0, np.cumsum(week.value_lengths().to_numpy(), dtype=np.int64))
    return offsets, week.flatten().to_numpy(), count.flatten().to_numpy()


def _merge(tables: list[pa.Table]) -> pa.Table:
    summed = pa.concat_tables(tables).group_by(["row", "week"]).aggregate([("count", "sum")])
    columns = [summed["row"], summed["week"], summed["count_sum"]]
    return pa.table(columns, schema=COUNTS).sort_by([("row", "ascending"), ("week", "ascending")])
