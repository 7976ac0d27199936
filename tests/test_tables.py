"""Anyone's Parquet and CSV: every row arrives or is in quarantine with its reason; what cannot be used is one sentence."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seminar.config import DataConfig
from seminar.data.coerce import coerce
from seminar.data.quarantine import Loaded, Rows, count_reasons
from seminar.data.tables import TableSource, check_folder
from seminar.datasets import open_source
from seminar.errors import DataError
from seminar.hashing import stable_hash
from seminar.schema import EVENTS, ITEMS, QUARANTINE

T = 1_600_000_000_000


def events(**changed: Any) -> pa.Table:
    columns: dict[str, Any] = {
        "user_id": ["u", "v", "w"],
        "item_id": ["a", "b", "c"],
        "time_ms": [T, T + 1, T + 2],
        "label": [1, 0, 1],
    }
    columns |= changed
    return pa.table({name: values for name, values in columns.items() if values is not None})


def load(table: pa.Table, name: str = "events") -> Loaded:
    return coerce(name, Rows(table, "f", np.arange(table.num_rows)))


def folder(path: Path, log: pa.Table | None = None, **tables: pa.Table) -> Path:
    path.mkdir(exist_ok=True)
    everything = {"events": events() if log is None else log, "items": pa.table({"item_id": ["a", "b"]}), **tables}
    for name, table in everything.items():
        pq.write_table(table, path / f"{name}.parquet")
    return path


def read_all(source: TableSource) -> Loaded:
    found = [source.events(part) for part in source.parts()]
    return Loaded(pa.concat_tables([f.table for f in found]), pa.concat_tables([f.quarantine for f in found]))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"user_id": ["u", None, "w"]}, "user_id is null"),
        ({"item_id": ["a", "", "c"]}, "item_id is null"),
        ({"item_id": [b"a", b"\xff\xfe", b"c"]}, "item_id is not UTF-8"),
        ({"time_ms": [T, None, T]}, "time_ms is null"),
        ({"time_ms": [T, T // 1000, T]}, "time_ms looks like seconds, not milliseconds"),
        ({"time_ms": [T, T * 1000, T]}, "time_ms looks like microseconds, not milliseconds"),
        ({"time_ms": [T, T * 1_000_000, T]}, "time_ms looks like nanoseconds, not milliseconds"),
        ({"time_ms": [T, -5, T]}, "time_ms is not plausible"),
        ({"time_ms": [T, float("nan"), T]}, "time_ms is not a whole number"),
        ({"time_ms": [T, T + 0.5, T]}, "time_ms is not a whole number"),
        ({"time_ms": [str(T), "yesterday", str(T)]}, "time_ms is neither a whole number nor a date and time"),
        ({"label": [1, 2, 1]}, "label is not 0 or 1"),
        ({"label": [1.0, 0.5, 1.0]}, "label is not 0 or 1"),
        ({"label": ["1", "yes", "0"]}, "label is not 0 or 1"),
        ({"label": [1, None, 1]}, "label is null"),
        ({"query_id": ["q", "q", None], "query_origin": ["typed", "guessed", None]}, "unknown query_origin"),
        ({"query_id": ["q", "q", None], "query_origin": ["typed", None, None]}, "query_id without query_origin"),
        ({"query_id": ["q", None, None], "query_origin": ["typed", "tag", None]}, "query_origin without query_id"),
    ],
)
def test_one_bad_row_is_quarantined_with_its_reason_and_the_others_stay(changed: dict[str, Any], reason: str) -> None:
    loaded = load(events(**changed))
    assert loaded.table.schema == EVENTS
    assert loaded.quarantine.schema == QUARANTINE
    assert loaded.table["user_id"].to_pylist() == ["u", "w"]
    (rejected,) = loaded.quarantine.to_pylist()
    assert (rejected["table"], rejected["file"], rejected["row"], rejected["reason"]) == ("events", "f", 1, reason)
    assert "item_id" in json.loads(rejected["content"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"item_id": [1.0, 2.0, 3.0]}, "column 'item_id': got double, expected string or integer"),
        ({"label": None}, "f: got columns user_id, item_id, time_ms, expected column `label` among them"),
        ({"time_ms": np.array([T, T, T], np.float32)}, "column 'time_ms': got float, expected integer Unix ms"),
        ({"time_ms": [True, False, True]}, "column 'time_ms': got bool"),
        ({"query_id": ["q", "q", "q"]}, "query_id: got no column 'query_origin'"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence.replace("(", r"\(")) as caught:
        load(events(**changed))
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_integer_ids_keep_every_digit(ids: list[int]) -> None:
    table = pa.table(
        {
            "user_id": pa.array(ids, pa.int64()),
            "item_id": ids,
            "time_ms": [T + i for i in range(len(ids))],
            "label": [1] * len(ids),
        }
    )
    assert load(table).table["item_id"].to_pylist() == [str(i) for i in ids]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary()])
def test_every_way_to_store_text_is_read(kind: pa.DataType) -> None:
    assert load(events(item_id=pa.array(["a", "b", "c"]).cast(kind))).table["item_id"].to_pylist() == ["a", "b", "c"]


def test_times_are_read_from_timestamps_of_any_unit_and_from_text() -> None:
    moments = pa.array([T] * 3).cast(pa.timestamp("ms"))
    for times in (
        moments.cast(pa.timestamp("ns")),
        moments.cast(pa.timestamp("us", "Europe/Stockholm")),
        pa.array([T // 1000] * 3, pa.timestamp("s")),
        pa.array([float(T)] * 3),
        [f"{T}.0", "2020-09-13 12:26:40", "2020-09-13T14:26:40+02:00"],
    ):
        assert load(events(time_ms=times)).table["time_ms"].to_pylist() == [T] * 3


def test_repeated_rows_and_ids_keep_the_first() -> None:
    doubled = pa.concat_tables([events(), events(), events(label=[0, 0, 1])])
    loaded = load(doubled)
    assert loaded.table.num_rows == 4, "another label is another row"
    assert loaded.quarantine["row"].to_pylist() == [3, 4, 5, 7, 8]
    assert count_reasons(loaded.quarantine) == {"repeats an event": 5}
    items = load(pa.table({"item_id": ["a", "b", "a", None, None], "text": ["first", "b", "second", "x", "y"]}), "items")
    assert items.table["text"].to_pylist() == ["first", "b"]
    assert count_reasons(items.quarantine) == {"item_id is null": 2, "duplicate item_id": 1}


def test_a_row_after_a_rejected_twin_is_kept() -> None:
    items = load(pa.table({"item_id": ["a", "a"], "text": pa.array([b"\xff", b"fine"])}), "items")
    assert items.table["text"].to_pylist() == ["fine"]


def test_attributes_are_read_from_lists_text_and_serialised_lists() -> None:
    texts = ["a=1|b=2", '["a=1", "b=x, y"]', None, '["broken', "[1, 2]", '["a=1"] trailing', "c=3"]
    loaded = load(pa.table({"item_id": list("abcdefg"), "attributes": texts}), "items")
    assert loaded.table["attributes"].to_pylist() == [["a=1", "b=2"], ["a=1", "b=x, y"], None, ["c=3"]]
    assert loaded.quarantine["row"].to_pylist() == [3, 4, 5]
    lists = load(pa.table({"item_id": ["a"], "attributes": pa.array([["x=1"]], pa.large_list(pa.string()))}), "items")
    assert lists.table.schema == ITEMS


def test_missing_optional_columns_are_null_and_origin_is_none() -> None:
    table = load(events()).table
    assert table["request_id"].null_count == 3
    assert table["query_origin"].to_pylist() == ["none"] * 3


def test_csv_keeps_leading_zeros_quotes_long_fields_and_counts_lines_that_do_not_fit(tmp_path: Path) -> None:
    folder(tmp_path / "d")
    (tmp_path / "d" / "events.parquet").unlink()
    long = "x" * 200_000
    (tmp_path / "d" / "events.csv").write_bytes(
        b"item_id,user_id,time_ms,label,note\n"
        + f'007,"u, 1",{T},1,"two\nlines"\n'.encode()
        + f"008,v,{T},1\n".encode()
        + b"\n"
        + f"9007199254740993,w,{T},1,{long}\n".encode()
        + b"010,\xff," + f"{T},1,\n".encode()
    )  # fmt: skip
    loaded = read_all(TableSource(DataConfig(path=tmp_path / "d")))
    assert loaded.table["item_id"].to_pylist() == ["007", "9007199254740993"]
    assert loaded.table["user_id"].to_pylist() == ["u, 1", "w"]
    assert {r["row"]: r["reason"] for r in loaded.quarantine.to_pylist()} == {
        1: "row has 4 fields, header 5",
        3: "user_id is not UTF-8",
    }


def test_csv_ids_written_as_floats_are_quarantined_and_what_only_looks_alike_is_kept(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    for name in ("events", "items"):
        (path / f"{name}.parquet").unlink()
    floats, ids = ["123.0", "1.23e+18", "1.5E18", "9e+18", "12.50"], ["123", "007", "12e34567", "1.2.3", "a1.5", "v1e+5"]
    rows = [f"u{n},{name},{T + n},1,\n" for n, name in enumerate(floats + ids)]
    rows += [f"5.0,123,{T},1,\n", f"u,123,{T},1,77.0\n"]
    (path / "events.csv").write_text("user_id,item_id,time_ms,label,request_id\n" + "".join(rows))
    (path / "items.csv").write_text("item_id,text\n123.0,3.5\n123,3.5\n")
    source = TableSource(DataConfig(path=path))
    loaded = read_all(source)
    assert loaded.table["item_id"].to_pylist() == ids
    assert loaded.quarantine["row"].to_pylist() == [*range(len(floats)), len(rows) - 2, len(rows) - 1]
    assert count_reasons(loaded.quarantine) == {"id was written as a float": 7}
    assert source.items().table["text"].to_pylist() == ["3.5"]


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_csv_with_another_separator_is_told_so_with_its_path(tmp_path: Path, mark: str, name: str) -> None:
    path = folder(tmp_path / "d")
    (path / "events.parquet").unlink()
    (path / "events.csv").write_text(mark.join(["user_id", "item_id", "time_ms", "label"]) + "\n")
    with pytest.raises(DataError, match=f"by commas, not by {name}") as caught:
        TableSource(DataConfig(path=path))
    assert str(caught.value).startswith(f"{path / 'events.csv'}: got columns user_id")


def test_parquet_is_cut_by_row_groups_and_parts_join_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seminar.data.table_source.PART_ROWS", 25)
    n = 100
    log = pa.table(
        {"user_id": [str(i % 7) for i in range(n)], "item_id": ["a"] * n, "time_ms": [T + i for i in range(n)], "label": [1] * n}
    )
    log = log.set_column(3, "label", pa.array([9 if i == 61 else 1 for i in range(n)]))
    pq.write_table(log, folder(tmp_path / "d") / "events.parquet", row_group_size=10)
    source = TableSource(DataConfig(path=tmp_path / "d"))
    parts = source.parts()
    assert [(p.first, p.count, p.first_row) for p in parts] == [(0, 2, 0), (2, 2, 20), (4, 2, 40), (6, 2, 60), (8, 2, 80)]
    loaded = read_all(pickle.loads(pickle.dumps(source)))
    assert loaded.table["time_ms"].to_pylist() == [T + i for i in range(n) if i != 61]
    assert loaded.quarantine["row"].to_pylist() == [61]


def test_folder_of_parts_mixes_parquet_and_csv_and_finds_ids_that_repeat_across_files(tmp_path: Path) -> None:
    path = folder(tmp_path / "d")
    (path / "items.parquet").unlink()
    (path / "items").mkdir()
    pq.write_table(pa.table({"item_id": ["a", "b"]}), path / "items" / "1.parquet")
    pa.csv.write_csv(pa.table({"item_id": ["b", "c"], "text": ["late", "c"]}), path / "items" / "2.csv")
    (path / "items" / "_SUCCESS").touch()
    loaded = TableSource(DataConfig(path=path)).items()
    assert loaded.table["item_id"].to_pylist() == ["a", "b", "c"]
    assert count_reasons(loaded.quarantine) == {"duplicate item_id": 1}


def test_missing_ambiguous_and_damaged_tables_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        TableSource(DataConfig(path=tmp_path / "nowhere"))
    path = folder(tmp_path / "d")
    (path / "events.csv").write_text("user_id\n")
    with pytest.raises(DataError, match=r"events.parquet and events.csv, expected one of them"):
        TableSource(DataConfig(path=path))
    (path / "events.csv").unlink()
    (path / "items.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"items.parquet: got .*expected a Parquet file"):
        TableSource(DataConfig(path=path))
    (path / "items.parquet").rename(path / "item.parquet")
    with pytest.raises(DataError, match=r"table 'items': got events.parquet, item.parquet, expected items.parquet"):
        TableSource(DataConfig(path=path))


def test_empty_tables_are_allowed(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", EVENTS.empty_table(), items=ITEMS.empty_table())
    assert check_folder(path).rows == {"events": 0, "items": 0, "queries": 0, "users": 0}
    (path / "events.parquet").unlink()
    (path / "events.csv").write_text("user_id,item_id,time_ms,label\n")
    assert check_folder(path).clean


def test_until_and_max_users_keep_the_same_rows_however_the_log_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 200
    users = [f"user-{i % 20}" for i in range(n)]
    log = pa.table({"user_id": users, "item_id": ["a"] * n, "time_ms": [T + i * 1000 for i in range(n)], "label": [1] * n})
    path = folder(tmp_path / "d", users=pa.table({"user_id": [*sorted(set(users)), "quiet"]}))
    pq.write_table(log, path / "events.parquet", row_group_size=10)
    config = DataConfig(path=path, max_users=5, until="2020-09-13T12:28:20")
    whole = read_all(TableSource(config)).table
    names = np.array([*sorted(set(users)), "quiet"])
    expected = set(names[np.argsort(stable_hash(names))][:5].tolist())
    assert set(TableSource(config).users().table["user_id"].to_pylist()) == expected
    assert whole.to_pydict()["time_ms"] == [T + i * 1000 for i in range(100) if users[i] in expected]
    monkeypatch.setattr("seminar.data.table_source.PART_ROWS", 10)
    assert read_all(TableSource(config)).table.equals(whole)


def test_check_counts_rows_reasons_and_what_does_not_join(tmp_path: Path) -> None:
    log = events(
        item_id=["a", "ghost", "a"],
        query_id=["q", "unknown", None],
        query_origin=["typed", "typed", None],
        time_ms=[T, T + 1, 7],
        extra=[1, 2, 3],
    )
    path = folder(tmp_path / "d", log, queries=pa.table({"query_id": ["q"], "text": ["tea"]}))
    report = check_folder(path)
    assert report.rows == {"events": 2, "items": 2, "queries": 1, "users": 0}
    assert report.reasons["events"] == {"time_ms is not plausible": 1}
    assert report.facts["events whose item has no metadata"] == 1
    assert report.facts["events whose query has no text"] == 1
    assert report.facts["items without any event"] == 1
    assert report.facts["query_origin typed"] == 2
    assert report.facts["time (UTC)"] == "2020-09-13T12:26:40.000Z to 2020-09-13T12:26:40.001Z"
    assert report.notes == ["events.parquet: columns extra are not used"]
    assert not report.clean
    text = report.render()
    assert "events: time_ms is not plausible: 1" in text
    assert "columns extra are not used" in text
    report.write_quarantine(tmp_path / "quarantine.parquet")
    assert pq.read_table(tmp_path / "quarantine.parquet").schema.equals(QUARANTINE)


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    prints = [open_source(DataConfig(path=path)).fingerprint() for path in (one, two)]
    assert prints[0] == prints[1]
    folder(two, events(label=[1, 1, 1]))
    assert open_source(DataConfig(path=two)).fingerprint() != prints[0]


def test_no_row_is_lost_whatever_is_wrong_with_it() -> None:
    rng = np.random.default_rng(1)
    n = 2000
    table = pa.table(
        {
            "user_id": rng.choice(np.array(["u", "v", None, ""], object), n),
            "item_id": [b"\xff" if x else b"ok" for x in rng.random(n) < 0.1],
            "time_ms": rng.choice([T, T // 1000, 0, T * 1000, T + 1], n),
            "label": rng.choice([0, 1, 2], n),
            "query_id": rng.choice(np.array(["q", None], object), n),
            "query_origin": rng.choice(np.array(["typed", "none", None, "?"], object), n),
        }
    )
    loaded = load(table)
    assert loaded.table.num_rows + loaded.quarantine.num_rows == n
    assert len(set(loaded.quarantine["row"].to_pylist())) == loaded.quarantine.num_rows
    assert loaded.table.num_rows == len({tuple(row.values()) for row in loaded.table.to_pylist()})
