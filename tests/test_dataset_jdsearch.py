"""JDsearch's layout, made up: lists in a field, terms joined by a control character, gaps instead of times."""

from pathlib import Path
from typing import Any

import pytest

from seminar.config import DataConfig
from seminar.data.quarantine import count_reasons
from seminar.datasets import Source, open_source
from seminar.datasets.jdsearch import ANCHOR_MS

HEADER = (
    "query\tcandidate_wid_list\tcandidate_label_list\thistory_qry_list\thistory_wid_list\thistory_type_list\thistory_time_list"
)
LINES = [
    "7\x188\t10_11_12\t3.0_0.0_1.0\t-1_7\x188\x189_-1\t20_21_20\tORD_CLICK_CART\t0_12_0_5",
    "6\t10\t0.0\t\t\t\t",
    "5\t10_11\t0.0_0.0\t-1\t20\tFLW\t0_100",
    "5\t10_11\t0.0\t-1\t20\tFLW\t0_100",
    "5\t10\t0.0\t-1_-1\t20\tFLW\t0_100",
    "5\t10\t0.0\t-1\t20\tFLW\t0_x",
    "5\t10\t0.0\t-1_-1\t20_21\tFLW_LOOK\t0_1_3",
    "too\tfew",
]
LEVELS = "\t".join(f"cate_id_{i}\tcate_name_{i}" for i in (1, 2, 3, 4))
PRODUCTS = f"wid\tname\tbrand_id\tbrand_name\t{LEVELS}\tshop_id"


def source(folder: Path, **more: Any) -> Source:
    (folder / "user_behavior_data.txt").write_text("\n".join([HEADER, *LINES]) + "\n")
    product = '10\t3\x184"\t77\t\t1\ta\t2\tb\t3\tc\t4\td\t88'
    (folder / "product_meta_data.txt").write_text("\n".join([PRODUCTS, product, product]) + "\n")
    return open_source(DataConfig(source="jdsearch", path=folder, **more))


def test_history_times_are_the_gaps_counted_back_from_the_search(tmp_path: Path) -> None:
    (part,) = source(tmp_path).parts()
    rows = [r for r in source(tmp_path).events(part).table.to_pylist() if r["user_id"] == "0"]
    seen = [(r["item_id"], (r["time_ms"] - ANCHOR_MS) / 1000, r["label"], r["query_id"], r["request_id"]) for r in rows]
    assert seen == [
        ("20", -17, 1, None, None),
        ("21", -5, 1, "7 8 9", None),
        ("20", -5, 1, None, None),
        ("10", 0, 1, "7 8", "search"),
        ("11", 0, 0, "7 8", "search"),
        ("12", 0, 1, "7 8", "search"),
    ]
    assert {r["query_origin"] for r in rows if r["query_id"]} == {"typed"}


def test_a_user_without_history_still_has_the_search(tmp_path: Path) -> None:
    (part,) = source(tmp_path).parts()
    rows = [r for r in source(tmp_path).events(part).table.to_pylist() if r["user_id"] == "1"]
    assert [(r["item_id"], r["label"], r["query_id"]) for r in rows] == [("10", 0, "6")]


def test_lines_and_behaviours_that_do_not_fit_are_quarantined(tmp_path: Path) -> None:
    (part,) = source(tmp_path).parts()
    loaded = source(tmp_path).events(part)
    assert {r["row"]: r["reason"] for r in loaded.quarantine.to_pylist()} == {
        3: "candidate lists differ in length",
        4: "history lists differ in length",
        5: "time gap is not a whole number of seconds",
        6: "unknown behaviour type",
        7: "row has 2 fields, header 7",
    }
    times = {r["item_id"]: r["time_ms"] for r in loaded.table.to_pylist() if r["user_id"] == "6"}
    assert times["20"] == ANCHOR_MS - 4000


def test_buckets_of_lines_hold_the_same_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = source(tmp_path).parts()
    whole = source(tmp_path).events(part)
    monkeypatch.setattr("seminar.datasets.jdsearch.BYTES_PER_PART", 50)
    loaded = [source(tmp_path).events(part) for part in source(tmp_path).parts()]
    assert len(loaded) > 3
    assert sorted(str(r) for part in loaded for r in part.table.to_pylist()) == sorted(str(r) for r in whole.table.to_pylist())
    assert sum(part.quarantine.num_rows for part in loaded) == whole.quarantine.num_rows


def test_products_and_queries(tmp_path: Path) -> None:
    items = source(tmp_path).items()
    (row,) = items.table.to_pylist()
    assert (row["text"], row["category"]) == ('3 4"', "3")
    assert row["attributes"] == ["brand=77", "shop=88", "category1=1", "category2=2", "category3=3", "category4=4"]
    assert count_reasons(items.quarantine) == {"duplicate item_id": 1}
    assert sorted(source(tmp_path).queries().table["query_id"].to_pylist()) == ["5", "6", "7 8", "7 8 9"]


def test_a_sample_of_users_is_a_sample_of_lines(tmp_path: Path) -> None:
    (part,) = source(tmp_path, max_users=1).parts()
    users = set(source(tmp_path, max_users=1).events(part).table["user_id"].to_pylist())
    assert len(users) <= 1
