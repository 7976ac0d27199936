"""Amazon reviews, 2018 release (UCSD "amazon_v2"): `<Category>[_5].json[.gz]` reviews and `meta_<Category>*.json[.gz]`.

Every review is a behaviour (label 1); its day is all the time there is, so a user's reviews of one day are one request. There are
no queries. Reviews and metadata repeat; titles may be a stray tag; text holds HTML. Both metadata layouts are read: `image` and
`imageURL`/`imageURLHighRes`; an item's image is the file name of its first picture, to be fetched by whoever may.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seminar.config import DataConfig
from seminar.data.coerce import coerce, first_of_each
from seminar.data.quarantine import Loaded, Rows, concat, empty_quarantine
from seminar.data.readers import gather, json_blocks, with_rejected
from seminar.datasets.base import Part, fingerprint_files, in_bucket, join_text, make_cut, select, token_lists, user_buckets
from seminar.errors import DataError, explain
from seminar.schema import ITEMS, QUERIES, USERS

BYTES_PER_PART = 128 << 20
"""Of the file as it lies on disk; gzipped reviews take about five times that in memory."""

_REVIEW = pa.schema(
    [("reviewerID", pa.string()), ("asin", pa.string()), ("unixReviewTime", pa.int64()), ("overall", pa.float64())]
)
_META = pa.schema(
    [
        ("asin", pa.string()),
        ("title", pa.string()),
        ("brand", pa.string()),
        ("main_cat", pa.string()),
        ("category", pa.list_(pa.string())),
        ("description", pa.list_(pa.string())),
        ("image", pa.list_(pa.string())),
        ("imageURL", pa.list_(pa.string())),
        ("imageURLHighRes", pa.list_(pa.string())),
    ]
)
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": " ", "&amp;": "&"}
_DESCRIPTION_CHARS = 400


class AmazonReviews:
    """A folder of review and metadata files as a `Source`."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self._folder = config.path
        files = sorted(p for p in config.path.glob("*.json*") if p.name.endswith((".json", ".json.gz")))
        self._meta = [p for p in files if p.name.startswith("meta_")]
        self._reviews = [p for p in files if p not in self._meta]
        if not self._reviews or not self._meta:
            found = ", ".join(p.name for p in files) or "no JSON files"
            raise DataError(
                explain(
                    f"{config.path}",
                    got=found,
                    expected="<Category>_5.json.gz and meta_<Category>.json.gz",
                    fix="check data.path",
                )
            )
        self._cut = make_cut(config, self._user_ids())

    def parts(self) -> list[Part]:
        """Buckets of users of each review file."""
        return [part for path in self._reviews for part in user_buckets(self._folder, path.name, BYTES_PER_PART)]

    def events(self, part: Part) -> Loaded:
        """One row a review; later reviews of the same item by the same user on the same day are quarantined."""
        rows, rejected = gather(self._blocks(part))
        table = rows.table
        canonical = {
            "user_id": table["reviewerID"],
            "item_id": table["asin"],
            "time_ms": pc.multiply(table["unixReviewTime"], 1000),
            "label": pa.array(np.ones(table.num_rows, np.int8)),
        }
        return self._cut.apply(with_rejected(coerce("events", rows, canonical=pa.table(canonical)), rejected))

    def items(self) -> Loaded:
        """The first metadata row of each asin, over all metadata files."""
        parts = []
        for path in self._meta:
            for rows, rejected in json_blocks(path, path.name, "items", _META):
                parts.append(with_rejected(coerce("items", rows, canonical=_items(rows.table)), rejected))
        return first_of_each(concat(parts, ITEMS), "items", "meta_*")

    def queries(self) -> Loaded:
        """None: nobody typed anything."""
        return Loaded(QUERIES.empty_table(), empty_quarantine())

    def users(self) -> Loaded:
        """None beside those in events."""
        return Loaded(USERS.empty_table(), empty_quarantine())

    def fingerprint(self) -> str:
        """SHA-256 over all files."""
        return fingerprint_files(self._folder, [*self._reviews, *self._meta])

    def _blocks(self, part: Part) -> Iterator[tuple[Rows, pa.Table]]:
        for rows, rejected in json_blocks(self._folder / part.file, part.file, "events", _REVIEW):
            yield select(rows, in_bucket(rows.table["reviewerID"], part)), rejected if part.first == 0 else empty_quarantine()

    def _user_ids(self) -> Iterator[pa.ChunkedArray]:
        for path in self._reviews:
            for rows, _ in json_blocks(path, path.name, "users", pa.schema([_REVIEW.field("reviewerID")])):
                yield rows.table["reviewerID"]


def _items(table: pa.Table) -> pa.Table:
    title, brand, main = (_clean(table[name].combine_chunks()) for name in ("title", "brand", "main_cat"))
    path = table["category"].combine_chunks()
    levels = [_clean(_element(path, level)) for level in range(4)]
    description = pc.utf8_slice_codeunits(_clean(_element(table["description"].combine_chunks(), 0)), 0, _DESCRIPTION_CHARS)
    pictures = [_element(table[name].combine_chunks(), 0) for name in ("imageURLHighRes", "imageURL", "image")]
    tokens = {"brand": brand, "main": main, **{f"category{level + 1}": values for level, values in enumerate(levels)}}
    return pa.table(
        {
            "item_id": table["asin"],
            "text": join_text(title, brand, *levels, description),
            "category": pc.coalesce(pc.binary_join_element_wise(levels[0], levels[1], " / "), levels[0], main),
            "image": pc.replace_substring_regex(pc.coalesce(*pictures), r"^.*/", ""),
            "attributes": token_lists(tokens),
        }
    )


def _element(lists: pa.ListArray, index: int) -> pa.Array:
    """The element at `index` of each list; null where the list is shorter."""
    length_N = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    start_N = lists.offsets.to_numpy()[:-1]
    return lists.values.take(pa.array(start_N + index, pa.int64(), mask=length_N <= index))


def _clean(values: pa.Array) -> pa.Array:
    """Without tags (a tag that is never closed takes the rest with it), entities decoded, spaces single; empty is null."""
    for entity, character in _ENTITIES.items():
        values = pc.replace_substring(values, entity, character)
    values = pc.replace_substring_regex(values, r"<[a-zA-Z/!][^>]*(>|$)", " ")
    values = pc.utf8_trim_whitespace(pc.replace_substring_regex(values, r"\s+", " "))
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
