"""KuaiSAR: short videos recommended and searched for in one app (arXiv 2306.07705), files as published.

rec_inter.csv becomes label = click without a query; src_inter.csv label = clicked with its keyword as query. Only VIDEO results
are items. Session ids are used again, so a request is (session, time, keyword); a candidate repeated in one request is kept once,
as clicked if any of its rows was. Text is anonymised word ids. Parts are buckets of users, so that repeats meet.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seminar.config import DataConfig
from seminar.data.coerce import coerce, first_of_each, repeats
from seminar.data.columns import cast, text_of
from seminar.data.quarantine import Loaded, Rejects, Rows, concat, empty_quarantine
from seminar.data.readers import csv_blocks, csv_names, gather, with_rejected
from seminar.datasets.base import Part, fingerprint_files, in_bucket, make_cut, required_file, select, token_lists, user_buckets
from seminar.schema import ITEMS, QUERIES, USERS

BYTES_PER_PART = 256 << 20

_REC, _SRC, _ITEMS, _USERS = "rec_inter.csv", "src_inter.csv", "item_features.csv", "user_features.csv"
_SRC_KEYS = ["user_id", "search_session_id", "search_session_timestamp", "keyword"]
_PADDINGS = pa.array(["0", "empty", "UNKNOWN", "1970-01-01", "-1"])
_TOKENS = {
    "author": "author_id",
    "type": "item_type",
    "upload_type": "upload_type",
    "music": "music_id",
    "category1": "first_level_category_name_en",
    "category2": "second_level_category_name_en",
    "category3": "third_level_category_name_en",
    "category4": "fourth_level_category_name_en",
}


class KuaiSAR:
    """The four CSV files as a `Source`."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self._folder = config.path
        self._paths = {name: required_file(self._folder, [name]) for name in (_REC, _SRC, _ITEMS, _USERS)}
        self._cut = make_cut(config, self._user_ids())

    def parts(self) -> list[Part]:
        """Buckets of users, recommendation rows and search rows apart."""
        return [part for name in (_REC, _SRC) for part in user_buckets(self._folder, name, BYTES_PER_PART)]

    def events(self, part: Part) -> Loaded:
        """EVENTS of the part's users in one of the two logs."""
        rows, rejected = gather(self._blocks(part))
        loaded = _recommended(rows) if part.file == _REC else _searched(rows)
        return self._cut.apply(with_rejected(loaded, rejected))

    def items(self) -> Loaded:
        """ITEMS of item_features.csv; an empty caption is no text, paddings are no attributes."""
        names = csv_names(self._paths[_ITEMS])
        parts = []
        for rows, rejected in csv_blocks(self._paths[_ITEMS], _ITEMS, "items", names):
            parts.append(with_rejected(coerce("items", rows, canonical=_items(rows.table)), rejected))
        return first_of_each(concat(parts, ITEMS), "items", _ITEMS)

    def queries(self) -> Loaded:
        """QUERIES: every distinct keyword list, its word ids separated by spaces."""
        found = pa.array([], pa.string())
        for rows, _ in csv_blocks(self._paths[_SRC], _SRC, "events", ["keyword"]):
            found = pc.unique(pa.chunked_array([found, _words(rows.table["keyword"])])).drop_null()
        return Loaded(pa.table([found, found], schema=QUERIES), empty_quarantine())

    def users(self) -> Loaded:
        """USERS of user_features.csv; every other column is an attribute."""
        names = csv_names(self._paths[_USERS])
        parts = []
        for rows, rejected in csv_blocks(self._paths[_USERS], _USERS, "users", names):
            tokens = token_lists({name: text_of(rows.table[name]) for name in names if name != "user_id"})
            canonical = pa.table({"user_id": rows.table["user_id"], "attributes": tokens})
            parts.append(with_rejected(coerce("users", rows, canonical=canonical), rejected))
        return self._cut.apply(first_of_each(concat(parts, USERS), "users", _USERS))

    def fingerprint(self) -> str:
        """SHA-256 over the four files."""
        return fingerprint_files(self._folder, self._paths.values())

    def _blocks(self, part: Part) -> Iterator[tuple[Rows, pa.Table]]:
        path = self._folder / part.file
        for rows, rejected in csv_blocks(path, part.file, "events", csv_names(path)):
            yield select(rows, in_bucket(rows.table["user_id"], part)), rejected if part.first == 0 else empty_quarantine()

    def _user_ids(self) -> Iterator[pa.ChunkedArray]:
        for name in (_REC, _SRC, _USERS):
            for rows, _ in csv_blocks(self._folder / name, name, "users", ["user_id"]):
                yield rows.table["user_id"]


def _recommended(rows: Rows) -> Loaded:
    table = rows.table
    rejects = Rejects(table.num_rows)
    rejects.add(repeats(table, table.column_names, rejects.kept_N), "exact duplicate row")
    canonical = {
        "user_id": table["user_id"],
        "item_id": table["item_id"],
        "time_ms": table["timestamp"],
        "label": _clicked(table["click"]),
    }
    return coerce("events", rows, canonical=pa.table(canonical), rejects=rejects)


def _searched(rows: Rows) -> Loaded:
    table = rows.table
    rejects = Rejects(table.num_rows)
    video_N = pc.equal(table["item_type"], b"VIDEO")
    rejects.add(~pc.fill_null(video_N, False).to_numpy(), "search result is not a video")
    label = _clicked(table["click_cnt"])
    # Clicked rows first: of a repeated candidate the one that stays is clicked if any of them is.
    order = np.argsort(-pc.fill_null(label, 0).to_numpy(zero_copy_only=False), kind="stable")
    repeated_N = np.zeros(table.num_rows, bool)
    repeated_N[order] = repeats(table.take(order), [*_SRC_KEYS, "item_id"], rejects.kept_N[order])
    rejects.add(repeated_N, "repeated candidate of one search")
    words = _words(table["keyword"])
    typed = pc.equal(text_of(table["search_source"]), "USER_INPUT")
    canonical = {
        "user_id": table["user_id"],
        "item_id": table["item_id"],
        "time_ms": table["search_session_timestamp"],
        "query_id": words,
        "query_origin": pc.if_else(pc.is_null(words), "none", pc.if_else(pc.fill_null(typed, False), "typed", "tag")),
        "request_id": pc.binary_join_element_wise(
            *(text_of(table[name]) for name in ("search_session_id", "search_session_timestamp")),
            words,
            "/",
            null_handling="replace",
        ),
        "label": label,
    }
    return coerce("events", rows, canonical=pa.table(canonical), rejects=rejects)


def _items(table: pa.Table) -> pa.Table:
    first, second = (_known(table[f"{level}_level_category_name_en"]) for level in ("first", "second"))
    tokens = {token: _known(table[name]) for token, name in _TOKENS.items()}
    tokens["upload_month"] = pc.utf8_slice_codeunits(_known(table["upload_time"]), 0, 7)
    return pa.table(
        {
            "item_id": table["item_id"],
            "text": _words(table["caption"]),
            "category": pc.coalesce(pc.binary_join_element_wise(first, second, " / "), first),
            "attributes": token_lists(tokens),
        }
    )


def _known(column: pa.ChunkedArray) -> pa.Array:
    """Text without the values that stand for nothing."""
    values = text_of(column)
    return pc.if_else(pc.is_in(values, _PADDINGS), pa.scalar(None, pa.string()), values)


def _words(column: pa.ChunkedArray) -> pa.Array:
    """`[12, 7, 3]` to `12 7 3`; `[]` to null."""
    words = pc.replace_substring_regex(pc.utf8_trim(text_of(column), "[] "), r",\s*", " ")
    return pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)


def _clicked(column: pa.ChunkedArray) -> pa.Array:
    """A number of clicks to 0 or 1; null where it is no number."""
    clicks, _ = cast(text_of(column), pa.float64())
    return pc.greater(clicks, 0).cast(pa.int8())
