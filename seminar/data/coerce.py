"""One raw column or table of anyone's Parquet or CSV to the Arrow schemas of `schema.py`, whole columns at a time.

A type that cannot be right for any row (float ids) is a DataError; a value that cannot be right is a rejected row.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from seminar.data.columns import is_text, mask, to_field
from seminar.data.quarantine import Loaded, Rejects, Rows
from seminar.errors import DataError, explain
from seminar.schema import ORIGINS, TABLES

_KEYS = {"items": "item_id", "queries": "query_id", "users": "user_id"}


def coerce(name: str, rows: Rows, *, canonical: pa.Table | None = None, rejects: Rejects | None = None) -> Loaded:
    """Raw rows of one canonical table to its schema; rejected rows go to quarantine with their row in the file.

    Adds the nullable columns that are missing, ignores unknown ones. query_origin is "none" wherever there is no query.
    Exact duplicate events, and items, queries and users whose id repeats, keep their first row. A loader of another layout
    gives the same rows under canonical names in `canonical` and what it found wrong itself in `rejects`. Raises DataError
    for a missing column or a wrong type.
    """
    raw = rows.table if canonical is None else canonical
    check_columns(name, raw.schema, rows.file)
    rejects = rejects or Rejects(raw.num_rows)
    schema = TABLES[name]
    table = pa.table([to_field(field, raw, rejects) for field in schema], names=schema.names)
    if name == "events":
        table = _check_queries(table, rejects)
    keys = schema.names if name == "events" else [_KEYS[name]]
    rejects.add(repeats(table, keys, rejects.kept_N), "repeats an event" if name == "events" else f"duplicate {_KEYS[name]}")
    loaded = rejects.split(table, rows, name)
    return Loaded(loaded.table.cast(schema), loaded.quarantine)


def check_columns(name: str, raw: pa.Schema, file: str) -> None:
    """Raise DataError for a missing required column, a repeated one, or a type no value of which can be right."""
    schema = TABLES[name]
    for field in schema:
        found = raw.get_all_field_indices(field.name)
        if len(found) > 1 or (not found and not field.nullable):
            raise DataError(_repeated(field.name, file) if found else _missing(field.name, name, raw, file))
        if found:
            _check_type(field, raw.field(found[0]).type, f"{file}: column {field.name!r}")
    if name == "events" and "query_id" in raw.names and "query_origin" not in raw.names:
        raise DataError(
            explain(
                f"{file}: query_id",
                got="no column 'query_origin' beside it",
                expected=f"one of {', '.join(ORIGINS)} in every row",
                fix="add it, because results of different origins are never pooled",
            )
        )


def _repeated(column: str, file: str) -> str:
    return explain(file, got=f"column `{column}` more than once", expected="it once", fix="keep one of them")


def _missing(column: str, table: str, raw: pa.Schema, file: str) -> str:
    required = ", ".join(f.name for f in TABLES[table] if not f.nullable)
    separator = next((mark for mark in (";", "\t") if len(raw.names) == 1 and mark in raw.names[0]), None)
    fix = f"add or rename it ({table} needs {required})"
    if separator:
        fix = f"separate columns by commas, not by {'semicolons' if separator == ';' else 'tabs'}"
    return explain(
        file, got=f"columns {', '.join(map(_shown, raw.names)) or 'none'}", expected=f"column `{column}` among them", fix=fix
    )


def _shown(name: str) -> str:
    return name.replace("\t", "\\t")


def _check_type(field: pa.Field, got: pa.DataType, where: str) -> None:
    if pa.types.is_dictionary(got):
        got = got.value_type
    text = is_text(got) or pa.types.is_null(got)
    number = pa.types.is_integer(got)
    if field.name == "time_ms":
        right, expected = text or number or pa.types.is_timestamp(got) or got == pa.float64(), "integer Unix ms or a timestamp"
        fix = "store it as int64 milliseconds (float32 has steps of minutes)"
    elif field.name == "label":
        right, expected = text or number or pa.types.is_boolean(got) or pa.types.is_floating(got), "0 or 1"
        fix = "store it as int8"
    elif field.name.endswith("_id"):
        right, expected = text or number, "string or integer"
        fix = "write ids as strings or int64 (float ids lose digits)"
    elif pa.types.is_list(field.type):
        right, expected = text or (_is_list(got) and is_text(got.value_type)), "list of strings, or one string 'a=1|b=2'"
        fix = "store tokens `field=value`"
    else:
        right, expected, fix = text, "string", "cast it to string"
    if not right:
        raise DataError(explain(where, got=str(got), expected=expected, fix=fix))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _check_queries(table: pa.Table, rejects: Rejects) -> pa.Table:
    origin = pc.fill_null(table["query_origin"], "none")
    has_query_N, origin_none_N = ~mask(pc.is_null(table["query_id"])), mask(pc.equal(origin, "none"))
    unknown_N = ~mask(pc.is_in(origin, pa.array(ORIGINS)))
    rejects.add(unknown_N, "unknown query_origin")
    rejects.add(has_query_N & origin_none_N, "query_id without query_origin")
    rejects.add(~has_query_N & ~origin_none_N, "query_origin without query_id")
    return table.set_column(table.schema.get_field_index("query_origin"), "query_origin", origin)


def repeats(table: pa.Table, keys: list[str], among_N: Bool[ndarray, " N"]) -> Bool[ndarray, " N"]:
    """True for rows of `among_N` that equal, in the columns `keys`, an earlier row of `among_N`; null equals null."""
    candidates = np.flatnonzero(among_N)
    rows = table.select(keys).take(candidates).append_column("_row", pa.array(candidates))
    first = rows.group_by(keys).aggregate([("_row", "min")])["_row_min"].to_numpy()
    repeated_N = among_N.copy()
    repeated_N[first] = False
    return repeated_N


def first_of_each(loaded: Loaded, name: str, file: str) -> Loaded:
    """Canonical items, queries or users read block by block, without the ids that repeat in a later block."""
    row_N = np.full(loaded.table.num_rows, -1)
    again = coerce(name, Rows(loaded.table, file, row_N))
    return Loaded(again.table, pa.concat_tables([loaded.quarantine, again.quarantine]))
