"""KuaiSAR's layout: every count of the provided look-alike, and each kind of dirt on its own."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from seminar.config import DataConfig
from seminar.data.quarantine import Loaded, count_reasons
from seminar.datasets import Source, open_source
from seminar.errors import DataError

FIXTURE = Path(__file__).parent / "fixtures" / "kuaisar_format_synthetic"
T = 1_684_738_200_000

REC = "user_id,item_id,duration_ms,playing_time,timestamp,forward,like,follow,search_item_related,search,click,time"
SRC = "keyword,item_id,click_cnt,search_session_id,item_type,user_id,search_session_timestamp,search_source,search_session_time"
ITEMS = (
    "item_id,caption,author_id,item_type,upload_time,upload_type,music_id,first_level_category_id,first_level_category_name,"
    "second_level_category_id,second_level_category_name,third_level_category_id,third_level_category_name,fourth_level_category_id,"
    "fourth_level_category_name,first_level_category_name_en,second_level_category_name_en,third_level_category_name_en,"
    "fourth_level_category_name_en"
)


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kuaisar")
    for path in FIXTURE.glob("*.csv.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


def write(folder: Path, rec: list[str], src: list[str], items: list[str] | None = None) -> Source:
    for name, header, rows in [
        ("rec_inter.csv", REC, rec),
        ("src_inter.csv", SRC, src),
        ("item_features.csv", ITEMS, items or []),
        ("user_features.csv", "user_id,onehot_feat1,search_active_level", ["1,7,4"]),
    ]:
        (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return open_source(DataConfig(source="kuaisar", path=folder))


def read(source: Source, file: str) -> Loaded:
    found = [source.events(part) for part in source.parts() if part.file == file]
    return Loaded(pa.concat_tables([f.table for f in found]), pa.concat_tables([f.quarantine for f in found]))


def rejected(loaded: Loaded, reason: str) -> list[dict[str, str]]:
    return [json.loads(r["content"]) for r in loaded.quarantine.to_pylist() if r["reason"] == reason]


def test_all_expected_counts_of_the_look_alike_are_found(dump: Path) -> None:
    source = open_source(DataConfig(source="kuaisar", path=dump))
    rec, src, items = read(source, "rec_inter.csv"), read(source, "src_inter.csv"), source.items().table
    repeats = rejected(rec, "exact duplicate row")
    raw_src = [json.loads(r["content"]) for r in src.quarantine.to_pylist()]
    kept = src.table.to_pylist()
    clicked = {(r["user_id"], r["request_id"]) for r in kept if r["label"]}
    key = "/".join
    words = {"[": "", "]": "", ",": ""}
    requests = {(r["user_id"], r["request_id"]) for r in kept}
    for row in raw_src:
        request = key([row["search_session_id"], row["search_session_timestamp"], row["keyword"].translate(str.maketrans(words))])
        requests.add((row["user_id"], request))
        if int(row["click_cnt"]):
            clicked.add((row["user_id"], request))
    ids = {*rec.table["item_id"].to_pylist(), *src.table["item_id"].to_pylist(), *items["item_id"].to_pylist()}
    ids |= {row["item_id"] for row in raw_src}
    months = pa.array([any(t.startswith("upload_month=") for t in tokens) for tokens in items["attributes"].to_pylist()])
    rec_clicks = pc.sum(rec.table["label"]).as_py()
    assert {
        "rec_rows": rec.table.num_rows + rec.quarantine.num_rows,
        "rec_exact_duplicate_rows": len(repeats),
        "rec_click_rows": rec_clicks + sum(int(r["click"]) for r in repeats),
        "rec_click_rows_after_exact_dedup": rec_clicks,
        "src_rows": src.table.num_rows + src.quarantine.num_rows,
        "src_click_rows": pc.sum(src.table["label"]).as_py() + sum(int(r["click_cnt"]) > 0 for r in raw_src),
        "distinct_user_session_ids": len({(user, request.split("/")[0]) for user, request in requests}),
        "distinct_user_session_time_keyword": len(requests),
        "items_with_metadata": items.num_rows,
        "items_total": len(ids),
        "empty_captions": items["text"].null_count,
        "padded_upload_time": pc.sum(pc.invert(months)).as_py(),
        "captions_over_131072_chars": pc.sum(pc.greater(pc.utf8_length(items["text"]), 131_072)).as_py(),
        "sessions": len(requests),
        "no_click_sessions": len(requests - clicked),
        "conflict_or_dup_candidate": len(rejected(src, "repeated candidate of one search")),
    } == json.loads((FIXTURE / "EXPECTED.json").read_text())


def test_buckets_of_users_hold_the_same_rows_as_one_part(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(DataConfig(source="kuaisar", path=dump))
    whole = [read(source, file) for file in ("rec_inter.csv", "src_inter.csv")]
    monkeypatch.setattr("seminar.datasets.kuaisar.BYTES_PER_PART", 100_000)
    assert len(source.parts()) == 8
    for one, file in zip(whole, ("rec_inter.csv", "src_inter.csv"), strict=True):
        many = read(source, file)
        order = [("user_id", "ascending"), ("time_ms", "ascending"), ("item_id", "ascending"), ("label", "ascending")]
        assert many.table.sort_by(order).equals(one.table.sort_by(order))
        assert sorted(many.quarantine["row"].to_pylist()) == sorted(one.quarantine["row"].to_pylist())


def test_float_times_are_exact_and_clicks_without_a_search_have_no_query(tmp_path: Path) -> None:
    source = write(tmp_path, [f"1,5,7400.0,10.0,{T + 1}.0,0,0,0,0,0,1,x", f"1,6,0.0,0.0,{T},0,0,0,0,0,0,x"], [])
    rows = read(source, "rec_inter.csv").table.to_pylist()
    assert [(r["time_ms"], r["label"], r["query_id"], r["query_origin"]) for r in rows] == [
        (T + 1, 1, None, "none"),
        (T, 0, None, "none"),
    ]


def test_a_repeated_candidate_counts_as_clicked_if_any_of_its_rows_was(tmp_path: Path) -> None:
    row = '"[3, 4]",{item},{clicks},9,VIDEO,1,{time},{source},x'
    src = [
        row.format(item=5, clicks=0, time=T, source="USER_INPUT"),
        row.format(item=6, clicks=2, time=T, source="USER_INPUT"),
        row.format(item=5, clicks=1, time=T, source="USER_INPUT"),
        row.format(item=5, clicks=0, time=T + 60_000, source="RECOMMEND_QUERY"),
    ]
    loaded = read(write(tmp_path, [], src), "src_inter.csv")
    rows = loaded.table.to_pylist()
    assert [(r["item_id"], r["label"], r["query_origin"]) for r in rows] == [
        ("6", 1, "typed"),
        ("5", 1, "typed"),
        ("5", 0, "tag"),
    ]
    assert {r["query_id"] for r in rows} == {"3 4"}
    assert len({r["request_id"] for r in rows}) == 2, "the session id is used again for a later search"
    assert loaded.quarantine["row"].to_pylist() == [0]


def test_results_that_are_no_videos_are_quarantined(tmp_path: Path) -> None:
    loaded = read(write(tmp_path, [], [f"[3],5,1,9,LIVE,1,{T},USER_INPUT,x"]), "src_inter.csv")
    assert loaded.table.num_rows == 0
    assert count_reasons(loaded.quarantine) == {"search result is not a video": 1}


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    source = write(tmp_path, [], [])
    (tmp_path / "rec_inter.csv").write_text(f"click,timestamp,item_id,user_id\n1,{T},5,1\n")
    assert read(source, "rec_inter.csv").table["item_id"].to_pylist() == ["5"]


def test_items_keep_commas_long_captions_and_drop_paddings(tmp_path: Path) -> None:
    caption = ", ".join(["3999"] * 40_000)
    film = "Film, Television, and Short Dramas"
    items = [
        f'5,"[{caption}]",0,NORMAL,1970-01-01,LongImport,0,5,x,0,empty,0,empty,0,empty,"{film}",empty,empty,empty',
        "6,[],7,AD,2023-02-03,UNKNOWN,0,9,x,136,x,0,empty,0,empty,Funny,Funny joke,empty,empty",
    ]
    rows = write(tmp_path, [], [], items).items().table.to_pylist()
    assert len(rows[0]["text"]) > 131_072
    assert rows[0]["category"] == film
    assert rows[0]["attributes"] == ["type=NORMAL", "upload_type=LongImport", f"category1={film}"]
    assert (rows[1]["text"], rows[1]["category"]) == (None, "Funny / Funny joke")
    assert "upload_month=2023-02" in rows[1]["attributes"]


def test_users_and_queries_come_with_their_attributes_and_words(dump: Path) -> None:
    source = open_source(DataConfig(source="kuaisar", path=dump, max_users=3))
    assert source.users().table.num_rows == 3
    assert {t.partition("=")[0] for tokens in source.users().table["attributes"].to_pylist() for t in tokens} == {
        "onehot_feat1",
        "onehot_feat2",
        "search_active_level",
        "rec_active_level",
    }
    used = set(read(source, "src_inter.csv").table["query_id"].to_pylist())
    assert used <= set(source.queries().table["query_id"].to_pylist())


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, [], [])
    (tmp_path / "item_features.csv").unlink()
    with pytest.raises(DataError, match=r"expected item_features.csv; check data.path and data.source"):
        open_source(DataConfig(source="kuaisar", path=tmp_path))
