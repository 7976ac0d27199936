"""Amazon reviews in both metadata layouts, with the dirt of the real files, made up."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from seminar.config import DataConfig
from seminar.data.quarantine import count_reasons
from seminar.datasets import Source, open_source
from seminar.errors import DataError

SPAN = '<span class="a-size-medium a-color-secondary"'


def review(user: str, item: str, day: int, **more: Any) -> dict[str, Any]:
    return {
        "overall": 5.0,
        "reviewerID": user,
        "asin": item,
        "unixReviewTime": 1_400_000_000 + 86_400 * day,
        "reviewText": "x",
        **more,
    }


def meta(item: str, **more: Any) -> dict[str, Any]:
    return {"category": [], "description": [], "title": "", "brand": "", "rank": [], "main_cat": "Tea", "asin": item, **more}


REVIEWS = [
    review("U1", "A", 0, style={"Size:": "small"}),
    review("U1", "B", 0, vote="3"),
    review("U1", "A", 0, style={"Size:": "small"}),
    review("U2", "A", 4, image=["https://example.org/x.jpg"]),
]
META = [
    meta(
        "A",
        title=SPAN,
        brand="Leaf &amp; Co",
        rank=[],
        category=["Tea", "Green &amp; White", "<b>Sencha</b>"],
        description=["fresh"],
    ),
    meta(
        "B",
        title="Pot &lt;large&gt;",
        rank="742 in Tea (",
        imageURL=["https://example.org/small/B._SX38_.jpg"],
        imageURLHighRes=["https://example.org/I/B.jpg"],
    ),
    meta("A", title="a second A"),
    meta("C", image=["https://example.org/I/C.jpg"], rank={"odd": 1}),
]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    lines = [json.dumps(r) for r in REVIEWS]
    lines.insert(2, "{'python': 'not json'}")
    (tmp_path / "Tea_5.json.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (tmp_path / "meta_Tea.json.gz").write_bytes(gzip.compress("\n".join(json.dumps(m) for m in META).encode()))
    return tmp_path


def source(dump: Path, **more: Any) -> Source:
    return open_source(DataConfig(source="amazon", path=dump, **more))


def test_reviews_become_behaviours_in_milliseconds_and_repeats_are_quarantined(dump: Path) -> None:
    (part,) = source(dump).parts()
    loaded = source(dump).events(part)
    rows = [(r["user_id"], r["item_id"], r["time_ms"], r["label"], r["query_origin"]) for r in loaded.table.to_pylist()]
    day = 86_400_000
    assert rows == [
        ("U1", "A", 1_400_000_000_000, 1, "none"),
        ("U1", "B", 1_400_000_000_000, 1, "none"),
        ("U2", "A", 1_400_000_000_000 + 4 * day, 1, "none"),
    ]
    assert {r["row"]: r["reason"] for r in loaded.quarantine.to_pylist()} == {
        2: "line is not JSON of this layout",
        3: "repeats an event",
    }


def test_metadata_whose_fields_change_type_is_read_and_cleaned(dump: Path) -> None:
    loaded = source(dump).items()
    rows = {r["item_id"]: r for r in loaded.table.to_pylist()}
    assert list(rows) == ["A", "B", "C"]
    assert rows["A"]["text"] == "Leaf & Co Tea Green & White Sencha fresh", "the stray tag is no title"
    assert rows["A"]["category"] == "Tea / Green & White"
    assert "brand=Leaf & Co" in rows["A"]["attributes"]
    assert rows["B"]["text"] == "Pot"
    assert (rows["B"]["image"], rows["B"]["category"]) == ("B.jpg", "Tea")
    assert (rows["C"]["image"], rows["C"]["text"]) == ("C.jpg", None)
    assert count_reasons(loaded.quarantine) == {"duplicate item_id": 1}


def test_buckets_and_samples_of_users_are_whole_users(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seminar.datasets.amazon.BYTES_PER_PART", 20)
    parts = source(dump).parts()
    assert len(parts) > 2
    loaded = [source(dump).events(part) for part in parts]
    assert sum(part.table.num_rows for part in loaded) == 3
    assert sum(part.quarantine.num_rows for part in loaded) == 2
    one = [source(dump, max_users=1).events(part).table["user_id"].to_pylist() for part in parts]
    assert len({user for users in one for user in users}) == 1


def test_a_folder_without_metadata_is_one_sentence(dump: Path) -> None:
    (dump / "meta_Tea.json.gz").unlink()
    with pytest.raises(DataError, match=r"got Tea_5.json.gz, expected .* and meta_"):
        source(dump)
