"""The catalogue: one row an item or query, whose row number is what prepared data stores instead of the id.

Row numbers are for ever: a later catalogue that continues an earlier one keeps its rows and appends new ids, so vectors, codes
and histories made before stay valid. Catalogues are held in memory whole (ids and metadata, not vectors).
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seminar.data.weekly import add_up, weekly_lists
from seminar.schema import CATALOGUE_ITEMS, CATALOGUE_QUERIES, NONE


def item_catalogue(items: pa.Table, used_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """CATALOGUE_ITEMS of every item in `items` (schema ITEMS, unique ids) or `used_ids`, sorted by id; train_count 0.

    Ids without a row in `items` get null metadata and has_metadata False.
    """
    described = items.append_column("has_metadata", pa.repeat(True, len(items)))
    return extend_catalogue(CATALOGUE_ITEMS.empty_table(), _fill(_union(described, used_ids), CATALOGUE_ITEMS))


def query_catalogue(queries: pa.Table, used_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """CATALOGUE_QUERIES of every query in `queries` (schema QUERIES, unique ids) or `used_ids`, sorted by id; train_count 0."""
    return extend_catalogue(CATALOGUE_QUERIES.empty_table(), _fill(_union(queries, used_ids), CATALOGUE_QUERIES))


def extend_catalogue(old: pa.Table, new: pa.Table) -> pa.Table:
    """Old rows keep their numbers, ids that only `new` has follow, sorted; both are catalogues of the same kind.

    An id in both takes the new description unless the new one has none. category_index keeps the meaning it has in `old`;
    new categories follow, sorted. Counts restart at 0: they belong to one preparation, not to the catalogue.
    """
    key = old.schema.names[0]
    is_items = "category" in old.schema.names
    added = pc.unique(pc.filter(new[key], pc.invert(pc.is_in(new[key], old[key].combine_chunks()))))
    ids = pa.chunked_array([*old[key].chunks, added.take(pc.sort_indices(added))], pa.string())
    described = new.filter(new["has_metadata"] if is_items else pc.is_valid(new["text"]))
    # index_in finds the first row of an id: new description, else old, else the bare new row.
    sources = pa.concat_tables([described, old, new]).combine_chunks()
    rows = sources.take(pc.index_in(ids, sources[key].combine_chunks()))
    if is_items:
        rows = _set(rows, "category_index", _number_categories(rows["category"], old))
        return with_weekly_counts(rows, []).combine_chunks()
    return with_train_counts(rows, []).combine_chunks()


def with_train_counts(catalogue: pa.Table, counts: Iterable[pa.Table]) -> pa.Table:
    """A catalogue of queries with train_count = sum over `counts` (columns row, count; any number of shards)."""
    total = np.zeros(len(catalogue), np.int64)
    for table in counts:
        np.add.at(total, table["row"].to_numpy(), table["count"].to_numpy())
    return _set(catalogue, "train_count", pa.array(total))


def with_weekly_counts(catalogue: pa.Table, counts: Iterable[pa.Table]) -> pa.Table:
    """A catalogue of items with week, week_count and its sum train_count from `counts` (schema COUNTS, any number of shards)."""
    week, week_count, total = weekly_lists(add_up(counts), len(catalogue))
    for name, column in (("week", week), ("week_count", week_count), ("train_count", pa.array(total))):
        catalogue = _set(catalogue, name, column)
    return catalogue


def _union(described: pa.Table, used_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    key = described.schema.names[0]
    bare = pc.unique(pc.filter(used_ids, pc.invert(pc.is_in(used_ids, described[key].combine_chunks()))))
    return pa.concat_tables([described, pa.table({key: bare})], promote_options="default")


def _fill(table: pa.Table, schema: pa.Schema) -> pa.Table:
    defaults = {"has_metadata": False, "category_index": NONE, "train_count": 0, "week": [], "week_count": []}
    columns = []
    for field in schema:
        default = pa.scalar(defaults.get(field.name), field.type)
        if field.name not in table.schema.names:
            columns.append(pa.repeat(default, len(table)))
        else:
            column = table[field.name].cast(field.type)
            columns.append(column if field.nullable else pc.fill_null(column, default))
    return pa.table(columns, schema=schema)


def _number_categories(category: pa.ChunkedArray, old: pa.Table) -> pa.ChunkedArray:
    index, first = np.unique(old["category_index"].to_numpy(), return_index=True)
    row_of_index = np.full(index.max(initial=NONE) + 1, NONE)
    row_of_index[index[index != NONE]] = first[index != NONE]
    known = old["category"].combine_chunks().take(pa.array(row_of_index, mask=row_of_index == NONE))
    present = pc.unique(category.drop_null())
    added = pc.filter(present, pc.invert(pc.is_in(present, known)))
    order = pa.concat_arrays([known, added.take(pc.sort_indices(added))])
    return pc.fill_null(pc.index_in(category, order, skip_nulls=True), NONE)


def _set(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    at = table.schema.names.index(name)
    return table.set_column(at, table.schema.field(at), column)
