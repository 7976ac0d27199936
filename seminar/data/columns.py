"""One raw column of anyone's Parquet or CSV to its canonical type, whole columns at a time, with a reason for every bad value."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from jaxtyping import Bool
from numpy import ndarray

from seminar.data.quarantine import Rejects

EARLIEST_MS, LATEST_MS = 631_152_000_000, 4_102_444_800_000
"""Plausible times, 1990-01-01 to 2100-01-01 UTC. The ranges of s, ms, us and ns do not overlap."""

_UNITS = {"seconds": 1e-3, "microseconds": 1e3, "nanoseconds": 1e6}
_INTEGER, _NUMBER, _DATE = r"^\s*[+-]?\d+\s*$", r"^\s*[+-]?\d+\.0*\s*$", r"^\s*\d{4}-\d\d-\d\d"


_FLOAT_ID = r"^\d+\.\d+$|^\d+\.\d+[eE]\d+$|^\d+(\.\d+)?[eE][+-]\d+$"
"""What a float column looks like in text. Digits around a bare `e` stay ids: hexadecimal ones look like that."""


def float_ids(raw: pa.Table) -> Rejects:
    """Rows of a CSV file in which an id was written as a float: "123.0" is no longer "123", and "1.23e+18" has lost digits."""
    rejects = Rejects(raw.num_rows)
    for name in raw.column_names:
        if name.endswith("_id"):
            rejects.add(mask(pc.match_substring_regex(raw[name], _FLOAT_ID)), "id was written as a float")
    return rejects


def to_field(field: pa.Field, raw: pa.Table, rejects: Rejects) -> pa.Array:
    """The column of a schema's field, nulls if `raw` lacks it; its type has passed `check_columns`."""
    if field.name not in raw.column_names:
        return pa.nulls(raw.num_rows, field.type)
    values = raw[field.name].combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_null(values.type):
        values = values.cast(pa.string())
    if pa.types.is_integer(values.type) and pa.types.is_string(field.type):
        values = values.cast(pa.string())
    if is_text(values.type):
        values, bad_N = cast(values, pa.string())
        rejects.add(bad_N, f"{field.name} is not UTF-8")
    if not field.nullable:
        missing = pc.is_null(values)
        if field.name.endswith("_id"):
            missing = pc.or_kleene(missing, pc.equal(values, ""))
        rejects.add(mask(missing), f"{field.name} is null")
    elif pa.types.is_string(values.type):
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    if field.name == "time_ms":
        return _times(values, rejects)
    if field.name == "label":
        return _labels(values, rejects)
    return _tokens(values, rejects) if pa.types.is_list(field.type) else values


def _times(values: pa.Array, rejects: Rejects) -> pa.Array:
    present_N = ~mask(pc.is_null(values))
    if pa.types.is_timestamp(values.type):
        values = pc.cast(values, pa.timestamp("ms", values.type.tz), safe=False).cast(pa.int64())
    elif pa.types.is_floating(values.type):
        values, bad_N = cast(values, pa.int64())
        rejects.add(bad_N, "time_ms is not a whole number")
    elif pa.types.is_string(values.type):
        values, bad_N = _parse_times(values)
        rejects.add(bad_N & present_N, "time_ms is neither a whole number nor a date and time")
    else:
        values, bad_N = cast(values, pa.int64())
        rejects.add(bad_N, "time_ms is not plausible")
    time_N = pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    seen_N = present_N & ~mask(pc.is_null(values))
    for unit, scale in _UNITS.items():
        looks_N = seen_N & (time_N >= EARLIEST_MS * scale) & (time_N < LATEST_MS * scale)
        rejects.add(looks_N, f"time_ms looks like {unit}, not milliseconds")
    rejects.add(seen_N & ((time_N < EARLIEST_MS) | (time_N >= LATEST_MS)), "time_ms is not plausible")
    return values


def _parse_times(values: pa.Array) -> tuple[pa.Array, ndarray]:
    is_whole = pc.match_substring_regex(values, _NUMBER)
    values = pc.if_else(is_whole, pc.replace_substring_regex(values, r"\.0*\s*$", ""), values)
    numbers = pc.if_else(pc.match_substring_regex(values, _INTEGER), values, pa.scalar(None, pa.string()))
    millis, _ = cast(pc.utf8_trim_whitespace(numbers), pa.int64())
    dates = pc.if_else(pc.match_substring_regex(values, _DATE), pc.utf8_trim_whitespace(values), pa.scalar(None, pa.string()))
    if dates.null_count < len(dates):
        zoned = pc.match_substring_regex(dates, r"(Z|[+-]\d\d:?\d\d)$")
        moments, _ = cast(pc.if_else(zoned, dates, pc.binary_join_element_wise(dates, "Z", "")), pa.timestamp("ms", "UTC"))
        millis = pc.coalesce(millis, moments.cast(pa.int64()))
    return millis, mask(pc.is_null(millis))


def _labels(values: pa.Array, rejects: Rejects) -> pa.Array:
    present_N = ~mask(pc.is_null(values))
    if pa.types.is_string(values.type):
        values = pc.utf8_trim_whitespace(values)
        is_label = pc.match_substring_regex(values, r"^[01](\.0*)?$")
        values = pc.if_else(is_label, pc.utf8_slice_codeunits(values, 0, 1), pa.scalar(None, pa.string()))
    label_N = pc.fill_null(values.cast(pa.float64()), -1).to_numpy(zero_copy_only=False)
    bad_N = ~np.isin(label_N, (0, 1))
    rejects.add(bad_N & present_N, "label is not 0 or 1")
    return pa.array(np.where(bad_N, 0, label_N).astype(np.int8), mask=bad_N)


def _tokens(values: pa.Array, rejects: Rejects) -> pa.Array:
    if not pa.types.is_string(values.type):
        return values.cast(pa.list_(pa.string()))
    plain = pc.split_pattern(values, "|")
    as_json = pc.fill_null(pc.starts_with(pc.utf8_ltrim_whitespace(values), "["), False)
    if not pc.any(as_json).as_py():
        return plain
    # Lists serialised as JSON: one {"t": [...]} a line goes through Arrow's reader, not through Python.
    lines = pc.replace_substring_regex(values.filter(as_json), r"[\r\n]+", " ")
    parsed, bad_M = isolate(lines, _parse_json_lists, pa.list_(pa.string()))
    at_M, bad_N, row_N = np.flatnonzero(mask(as_json)), np.zeros(len(values), bool), np.arange(len(values))
    bad_N[at_M[bad_M]] = True
    rejects.add(bad_N, "attributes are not a JSON list of strings")
    row_N[at_M] = len(values) + np.arange(len(at_M))
    return pa.concat_arrays([plain, parsed]).take(pa.array(row_N))


def _parse_json_lists(lines: pa.Array) -> pa.Array:
    document = "\n".join(pc.binary_join_element_wise('{"t":', lines, "}", "").to_pylist())
    options = pa.json.ParseOptions(explicit_schema=pa.schema([("t", pa.list_(pa.string()))]), unexpected_field_behavior="error")
    block = pa.json.ReadOptions(use_threads=False, block_size=len(document) + (1 << 20))
    parsed = pa.json.read_json(pa.BufferReader(document.encode()), read_options=block, parse_options=options)
    if len(parsed) != len(lines):
        raise pa.ArrowInvalid("a line holds more than one value")
    return parsed["t"].combine_chunks()


def text_of(column: pa.ChunkedArray) -> pa.Array:
    """A byte column as strings; null where it is not UTF-8."""
    return cast(column.combine_chunks(), pa.string())[0]


def cast(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Bool[ndarray, " N"]]:
    """Cast, and a mask of values that have no cast (null in the result)."""
    return isolate(values, lambda part: pc.cast(part, kind), kind)


def isolate(values: pa.Array, convert: Callable[[pa.Array], pa.Array], kind: pa.DataType) -> tuple[pa.Array, ndarray]:
    """Convert whole columns; where that raises, halve until the bad values stand alone: O(bad x log rows) conversions."""
    try:
        return convert(values), np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        if len(values) <= 1:
            return pa.nulls(len(values), kind), np.ones(len(values), bool)
    half = len(values) // 2
    (left, left_bad), (right, right_bad) = (isolate(part, convert, kind) for part in (values[:half], values[half:]))
    return pa.concat_arrays([left, right]), np.concatenate([left_bad, right_bad])


def mask(values: pa.Array | pa.ChunkedArray) -> Bool[ndarray, " N"]:
    """A boolean column in numpy; null is False."""
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False).astype(bool)


def is_text(kind: pa.DataType) -> bool:
    """True for every way Arrow stores strings or bytes."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)
