"""What a bundle's catalogue says in words, and the search for items, queries, users and bundles that a person needs.

A search reads every text of the catalogue: 4 ms for 80,000 items. It is for people, not for the path of a score.
"""

import contextlib
import heapq
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy import ndarray

from seminar.artifacts import Artifact, Store
from seminar.bundle import Bundle
from seminar.client import api
from seminar.errors import ArtifactError
from seminar.history.store import HistoryStore
from seminar.schema import NONE

MAX_BUNDLES = 100
MAX_ORDERED = 100_000
"""Users among whom the longest or newest histories are found."""


class Catalogue:
    """Texts, categories and queries of one bundle by row; columns are made when first asked for."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def category(self, row: int) -> str | None:
        return self._category[row].as_py()

    def categories(self, rows: Int[ndarray, " N"]) -> list[str | None]:
        return self._category.take(pa.array(rows)).to_pylist()

    def items(self, text: str, limit: int) -> api.ItemsResponse:
        """Items whose text has every word of `text` somewhere, and the one of that id; the most taken first."""
        found = _having(self._item_text, text)[self._order]
        rows = self._order[found][:limit].tolist()
        exact = int(self._bundle.item_row([text])[0])
        if exact != NONE:
            rows = [exact, *(row for row in rows if row != exact)][:limit]
        bundle = self._bundle
        items = [api.Item(item_id=bundle.item_ids[r], text=bundle.item_texts[r], category=self.category(r)) for r in rows]
        return api.ItemsResponse(items=items, bundle_version=bundle.version)

    def queries(self, text: str, limit: int) -> api.QueriesResponse:
        """Queries whose text has every word of `text` somewhere, in the catalogue's order."""
        bundle, rows = self._bundle, np.flatnonzero(_having(self._query_text, text))[:limit].tolist()
        queries = [api.CatalogueQuery(query_id=bundle.query_ids[r], text=bundle.query_texts[r]) for r in rows]
        return api.QueriesResponse(queries=queries, bundle_version=bundle.version)

    @cached_property
    def _category(self) -> pa.Array:
        return pq.read_table(self._bundle.path / "items.parquet", columns=["category"])["category"].combine_chunks()

    @cached_property
    def _item_text(self) -> pa.Array:
        return pc.utf8_lower(pa.array(self._bundle.item_texts, pa.string()))

    @cached_property
    def _query_text(self) -> pa.Array:
        return pc.utf8_lower(pa.array(self._bundle.query_texts, pa.string()))

    @cached_property
    def _order(self) -> Int[ndarray, " I"]:
        taken = self._bundle.ranker.heads.train_count.numpy()[: len(self._bundle.item_ids)]
        return np.argsort(-taken, kind="stable")


def users_page(store: HistoryStore, prefix: str, order: api.UserOrder, limit: int) -> api.UsersResponse:
    """Users whose id begins with `prefix`; another order than that of ids looks at the first MAX_ORDERED of them."""
    found = store.users(prefix, limit if order == "id" else MAX_ORDERED)
    if order == "longest":
        found = heapq.nlargest(limit, found, key=lambda user: user.length)
    elif order == "newest":
        found = heapq.nlargest(limit, found, key=lambda user: user.newest_ms or 0)
    users = [api.User(user_id=u.user_id, length=u.length, newest_ms=u.newest_ms) for u in found]
    return api.UsersResponse(users=users, total=store.num_users)


def bundles_page(store: Store, in_use: Artifact) -> api.BundlesResponse:
    """Published bundles, and the one in use wherever it lies."""
    known = []
    for version in store.versions("bundle")[::-1][:MAX_BUNDLES]:
        # One of another release's format cannot be served or explained.
        with contextlib.suppress(ArtifactError):
            known.append(store.open("bundle", version))
    if in_use.version not in [bundle.version for bundle in known]:
        known = [in_use, *known]
    current = store.in_use("bundle")
    bundles = [
        api.PublishedBundle(version=b.version, created=b.manifest.created, in_use=b.version == in_use.version) for b in known
    ]
    return api.BundlesResponse(current=None if current is None else current.version, bundles=bundles)


def _having(column: pa.Array, text: str) -> ndarray:
    """Which rows of a lower-case column have every word of `text`."""
    found = np.ones(len(column), np.bool_)
    for word in text.lower().split():
        found &= pc.match_substring(column, word).fill_null(False).to_numpy(zero_copy_only=False)
    return found
