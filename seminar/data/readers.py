"""Files as they lie on disk: CSV and JSON lines in bounded blocks of Arrow, with the row number of everything.

CSV columns are read as bytes and typed afterwards: a reader that guesses types turns "007" into 7 and a 19-digit id into a float,
and refuses a whole file for one bad value.
"""

import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
from jaxtyping import Int
from numpy import ndarray

from seminar.data.columns import isolate
from seminar.data.quarantine import Loaded, Rows, empty_quarantine, quarantine_rows
from seminar.errors import DataError, explain

BLOCK_BYTES = 1 << 25
"""Text parsed at a time, and so the longest row."""


def csv_names(path: Path, delimiter: str = ",") -> list[str]:
    """Column names of a CSV file (plain or .gz)."""
    with _open(path) as stream:
        header = stream.readline(1 << 20)
    options = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        return pa.csv.read_csv(io.BytesIO(header), parse_options=options).column_names
    except pa.ArrowInvalid as error:
        raise _unreadable(path, error) from error


def csv_blocks(
    path: Path, file: str, table: str, columns: Sequence[str], *, delimiter: str = ",", quoted: bool = True
) -> Iterator[tuple[Rows, pa.Table]]:
    """Blocks of a CSV file as (rows with byte columns, QUARANTINE of rows whose number of fields is wrong).

    An empty field is null. Fields may be longer than 131,072 characters and hold delimiters and line ends in quotes.
    """
    broken: list[tuple[int, str, str]] = []

    def on_broken(row: pa.csv.InvalidRow) -> str:
        # Numbered from 1, the header included.
        reason = f"row has {row.actual_columns} fields, header {row.expected_columns}"
        broken.append((row.number - 2, reason, row.text))
        return "skip"

    reader = _csv_reader(path, list(columns), delimiter, quoted, on_broken)
    row, done = 0, 0
    try:
        for batch in reader:
            row_N = _numbers(row, batch.num_rows, [number for number, _, _ in broken])
            row = int(row_N[-1]) + 1 if len(row_N) else row
            yield Rows(pa.Table.from_batches([batch]), file, row_N), _broken(table, file, broken[done:])
            done = len(broken)
    except pa.ArrowInvalid as error:
        raise _unreadable(path, error) from error
    if done < len(broken):
        empty = Rows(reader.schema.empty_table(), file, np.empty(0, np.int64))
        yield empty, _broken(table, file, broken[done:])


def json_blocks(path: Path, file: str, table: str, schema: pa.Schema) -> Iterator[tuple[Rows, pa.Table]]:
    """Blocks of a JSON-lines file (plain or .gz) as (rows of `schema`, QUARANTINE of lines that do not parse).

    Only the fields of `schema` are parsed: a field whose type differs from line to line cannot break the rest.
    """
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")

    def parse(lines: pa.Array) -> pa.Array:
        document = b"\n".join(lines.to_pylist())
        block = pa.json.ReadOptions(use_threads=False, block_size=len(document) + 1024)
        parsed = pa.json.read_json(io.BytesIO(document), read_options=block, parse_options=options)
        if parsed.num_rows != len(lines):
            raise pa.ArrowInvalid("a line is not one JSON object")
        return parsed.select(schema.names).combine_chunks().to_struct_array().combine_chunks()

    row = 0
    for lines in _line_blocks(path):
        array = pa.array(lines, pa.large_binary())
        structs, bad_N = isolate(array, parse, pa.struct(list(schema)))
        row_N = row + np.arange(len(lines))
        good = pa.Table.from_struct_array(structs.filter(pa.array(~bad_N)))
        texts = [lines[i].decode(errors="backslashreplace")[:10_000] for i in np.flatnonzero(bad_N)]
        rejected = quarantine_rows(table, file, row_N[bad_N], ["line is not JSON of this layout"] * len(texts), texts)
        yield Rows(good, file, row_N[~bad_N]), rejected
        row += len(lines)


def gather(blocks: Iterator[tuple[Rows, pa.Table]]) -> tuple[Rows, pa.Table]:
    """All blocks of one file as one."""
    rows, rejected = zip(*blocks, strict=True)
    table = pa.concat_tables([r.table for r in rows]).combine_chunks()
    return Rows(table, rows[0].file, np.concatenate([r.row_N for r in rows])), pa.concat_tables(rejected)


def with_rejected(loaded: Loaded, rejected: pa.Table) -> Loaded:
    """The same rows and more quarantine."""
    return Loaded(loaded.table, pa.concat_tables([rejected, loaded.quarantine]))


def _csv_reader(
    path: Path, columns: list[str], delimiter: str, quoted: bool, on_broken: Callable[[pa.csv.InvalidRow], str]
) -> pa.csv.CSVStreamingReader:
    try:
        return pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=on_broken,
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.binary() for name in columns},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise _unreadable(path, error) from error


def _numbers(first: int, count: int, skipped: Sequence[int]) -> Int[ndarray, " N"]:
    """`count` row numbers from `first` on, leaving out the skipped ones."""
    numbers = np.arange(first, first + count + len(skipped))
    return numbers[~np.isin(numbers, skipped)][:count]


def _broken(table: str, file: str, broken: Sequence[tuple[int, str, str]]) -> pa.Table:
    if not broken:
        return empty_quarantine()
    rows, reasons, texts = zip(*broken, strict=True)
    return quarantine_rows(table, file, np.array(rows), reasons, texts)


def _line_blocks(path: Path) -> Iterator[list[bytes]]:
    with _open(path) as stream:
        while lines := stream.readlines(BLOCK_BYTES):
            yield [line.rstrip(b"\r\n") or b"null" for line in lines]


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _unreadable(path: Path, error: Exception) -> DataError:
    problem = str(error).splitlines()[0].rstrip(".")
    return DataError(explain(str(path), got=problem, expected="a readable file of its kind", fix="write it again"))
