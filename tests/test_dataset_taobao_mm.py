"""The published demonstration of Taobao-MM, and its traps."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seminar.config import DataConfig
from seminar.data.quarantine import Loaded, count_reasons
from seminar.datasets import Source, open_source
from seminar.datasets.taobao_mm import TIMES
from seminar.errors import DataError

FIXTURE = Path(__file__).parent / "fixtures" / "taobao_mm_demo"


def source(path: Path = FIXTURE, **more: Any) -> Source:
    return open_source(DataConfig(source="taobao_mm", path=path, **more))


def read(found: Source) -> Loaded:
    parts = [found.events(part) for part in found.parts()]
    return Loaded(pa.concat_tables([p.table for p in parts]), pa.concat_tables([p.quarantine for p in parts]))


def test_histories_keep_order_and_every_digit_of_signed_ids() -> None:
    raw = pq.read_table(FIXTURE / "test_user_features.parquet")
    events = read(source()).table.to_pylist()
    for user, history in zip(raw["129_1"].to_pylist(), raw["150_2_180"].to_pylist(), strict=True):
        rows = [r for r in events if r["user_id"] == f"test:{user}" and r["label"] == 1 and r["request_id"] is None]
        rows.sort(key=lambda r: r["time_ms"])
        assert [int(r["item_id"]) for r in rows] == history
        assert rows[-1]["time_ms"] < TIMES["test"]
    assert min(int(r["item_id"]) for r in events) < -(2**62)


def test_samples_are_one_request_after_the_history() -> None:
    rows = [r for r in read(source()).table.to_pylist() if r["request_id"] == "samples"]
    assert [(r["user_id"].partition(":")[0], r["label"]) for r in rows] == [("train", 0)] * 10 + [
        ("test", int(i == 2)) for i in range(10)
    ]
    assert {r["time_ms"] for r in rows} == set(TIMES.values())


def test_small_parts_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(source()).table
    monkeypatch.setattr("seminar.datasets.taobao_mm.PART_ROWS", 3)
    assert len(source().parts()) == 10
    assert read(source()).table.equals(whole)


def test_items_known_from_histories_have_their_category() -> None:
    items = source().items().table
    raw = pq.read_table(FIXTURE / "train_user_features.parquet")
    category = dict(zip(items["item_id"].to_pylist(), items["category"].to_pylist(), strict=True))
    assert len(category) == items.num_rows
    assert category[str(raw["150_2_180"][0][0])] == str(raw["151_2_180"][0][0])
    featured = pq.read_table(FIXTURE / "item_features.parquet").to_pylist()[0]
    assert category[str(featured["205"])] == str(featured["206"])


def test_zero_is_nothing(tmp_path: Path) -> None:
    for path in FIXTURE.glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    ids = pa.list_(pa.int64())
    users = {"129_1": pa.array([5, 6]), "150_2_180": pa.array([[0, 9], [0]], ids), "151_2_180": pa.array([[0, 3], [0]], ids)}
    profile = {f"130_{i}": pa.array([0, i]) for i in range(1, 6)}
    pq.write_table(pa.table({**users, **profile}), tmp_path / "train_user_features.parquet")
    samples = {"label_0": pa.array([[0, 1], [1, 1], None], pa.list_(pa.int8())), "129_1": [6, 6, 6], "205": [9, 9, 9]}
    pq.write_table(pa.table(samples), tmp_path / "train_samples.parquet")
    loaded = read(source(tmp_path))
    train = [(r["user_id"], r["item_id"], r["label"]) for r in loaded.table.to_pylist() if r["user_id"].startswith("train")]
    assert train == [("train:5", "9", 1), ("train:6", "9", 1)]
    assert count_reasons(loaded.quarantine) == {"label_0 is not [1, 0] or [0, 1]": 2, "padding (item 0)": 2}
    attributes = source(tmp_path).users().table.slice(0, 2).to_pylist()
    assert attributes[0] == {"user_id": "train:5", "attributes": []}
    assert attributes[1]["attributes"] == [f"130_{i}={i}" for i in range(1, 6)]
    assert "0" not in source(tmp_path).items().table["item_id"].to_pylist()


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got no train_user_features\*.parquet"):
        source(tmp_path)
