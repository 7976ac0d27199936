"""JDsearch: real product searches (SIGIR 2023, doi 10.1145/3539618.3591900), tab-separated files as published.

A line is a user without an id, so the line number is the id. A history behaviour is label 1 with the query it came from, if any;
the line's own search is one request of all its candidates, label 1 if clicked, put in the cart or bought. Times are gaps in
seconds from an unknown start: every user's search is put at ANCHOR_MS and only differences mean anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from numpy import ndarray

from seminar.config import DataConfig
from seminar.data.coerce import coerce, first_of_each
from seminar.data.columns import cast, text_of
from seminar.data.quarantine import Loaded, Rejects, Rows, concat, empty_quarantine
from seminar.data.readers import csv_blocks, gather, with_rejected
from seminar.datasets.base import Part, fingerprint_files, in_bucket, make_cut, required_file, select, token_lists, user_buckets
from seminar.schema import EVENTS, ITEMS, QUERIES, USERS

ANCHOR_MS = 1_672_531_200_000
"""2023-01-01 UTC, in place of every user's unknown search time."""

BYTES_PER_PART = 64 << 20

_BEHAVIOURS = ["user_behavior_data.txt", "release_data.txt", "user_behavior_data_sample.txt", "release_data_sample.txt"]
_PRODUCTS = ["product_meta_data.txt", "product_data.txt", "product_meta_data_sample.txt", "product_data_sample.txt"]
_LINE = [
    "query",
    "candidate_wid_list",
    "candidate_label_list",
    "history_qry_list",
    "history_wid_list",
    "history_type_list",
    "history_time_list",
]
_TYPES = pa.array(["ORD", "CLICK", "CART", "FLW"])
_TERM = "\x18"
_FORMAT: dict[str, Any] = {"delimiter": "\t", "quoted": False}
_TOKENS = {"brand": "brand_id", "shop": "shop_id", **{f"category{level}": f"cate_id_{level}" for level in (1, 2, 3, 4)}}


class JDsearch:
    """The behaviour and the product file as a `Source`."""

    def __init__(self, config: DataConfig) -> None:
        assert config.path is not None
        self._folder = config.path
        self._behaviours = required_file(self._folder, _BEHAVIOURS).name
        self._products = required_file(self._folder, _PRODUCTS).name
        self._cut = make_cut(config, (_user_id(rows) for rows, _ in self._blocks(["query"])))

    def parts(self) -> list[Part]:
        """Buckets of users (lines)."""
        return user_buckets(self._folder, self._behaviours, BYTES_PER_PART)

    def events(self, part: Part) -> Loaded:
        """History behaviours of the part's lines, then the candidates of their searches."""
        blocks = ((select(r, in_bucket(_user_id(r), part)), bad) for r, bad in self._blocks(_LINE))
        rows, rejected = gather(blocks)
        rejected = rejected if part.first == 0 else empty_quarantine()
        lines = _Lines.parse(rows)
        found = [
            coerce("events", raw, canonical=canonical, rejects=rejects)
            for raw, canonical, rejects in (lines.history(), lines.search())
        ]
        return self._cut.apply(with_rejected(concat(found, EVENTS), pa.concat_tables([rejected, lines.rejected])))

    def items(self) -> Loaded:
        """ITEMS of the product file; category is the third of four levels."""
        parts = []
        for rows, rejected in csv_blocks(
            self._folder / self._products, self._products, "items", self._product_names(), **_FORMAT
        ):
            text = {name: text_of(rows.table[name]) for name in rows.table.column_names}
            columns = {
                "item_id": text["wid"],
                "text": pc.replace_substring(text["name"], _TERM, " "),
                "category": text["cate_id_3"],
                "attributes": token_lists({token: text[name] for token, name in _TOKENS.items()}),
            }
            parts.append(with_rejected(coerce("items", rows, canonical=pa.table(columns)), rejected))
        return first_of_each(concat(parts, ITEMS), "items", self._products)

    def queries(self) -> Loaded:
        """Every distinct query; its id is its text, anonymised terms separated by spaces."""
        found = pa.array([], pa.string())
        for rows, _ in self._blocks(["query", "history_qry_list"]):
            past = pc.list_flatten(pc.split_pattern(text_of(rows.table["history_qry_list"]), "_"))
            found = pc.unique(pa.chunked_array([found, _query(text_of(rows.table["query"])), _query(past)])).drop_null()
        return Loaded(pa.table([found, found], schema=QUERIES), empty_quarantine())

    def users(self) -> Loaded:
        """None beside those in events; nothing is known about a line's user."""
        return Loaded(USERS.empty_table(), empty_quarantine())

    def fingerprint(self) -> str:
        """SHA-256 over both files."""
        return fingerprint_files(self._folder, [self._folder / self._behaviours, self._folder / self._products])

    def _product_names(self) -> list[str]:
        return ["wid", "name", *_TOKENS.values()]

    def _blocks(self, columns: list[str]) -> Iterator[tuple[Rows, pa.Table]]:
        return csv_blocks(self._folder / self._behaviours, self._behaviours, "events", columns, **_FORMAT)


@dataclass(frozen=True)
class _Lines:
    """Lines whose lists agree, split; the others are in `rejected`."""

    rows: Rows
    lists: dict[str, pa.ListArray]
    rejected: pa.Table

    @classmethod
    def parse(cls, rows: Rows) -> "_Lines":
        """Split the lists of every line."""
        lists = {name: _split(rows.table[name]) for name in _LINE[1:]}
        length = {name: pc.list_value_length(values).to_numpy(zero_copy_only=False) for name, values in lists.items()}
        rejects = Rejects(rows.table.num_rows)
        rejects.add(length["candidate_wid_list"] != length["candidate_label_list"], "candidate lists differ in length")
        behaviours = length["history_wid_list"]
        differ = (length["history_qry_list"] != behaviours) | (length["history_type_list"] != behaviours)
        gap_missing = (length["history_time_list"] != behaviours + 1) & ((behaviours > 0) | (length["history_time_list"] > 1))
        rejects.add(differ | gap_missing, "history lists differ in length")
        gaps, bad_G = cast(lists["history_time_list"].flatten(), pa.int64())
        bad_lines = pc.list_parent_indices(lists["history_time_list"]).to_numpy()[bad_G | (pc.fill_null(gaps, 0).to_numpy() < 0)]
        rejects.add(np.isin(np.arange(len(behaviours)), bad_lines), "time gap is not a whole number of seconds")
        kept = rejects.split(rows.table, rows, "events")
        keep = pa.array(rejects.kept_N)
        good = Rows(kept.table, rows.file, rows.row_N[rejects.kept_N])
        return cls(good, {name: values.filter(keep) for name, values in lists.items()}, kept.quarantine)

    def history(self) -> tuple[Rows, pa.Table, Rejects]:
        """Behaviours as (raw rows, canonical columns, rejects)."""
        raw, line_E = self._expand("history_wid_list", "history_qry_list", "history_type_list")
        rejects = Rejects(len(line_E))
        rejects.add(~pc.is_in(raw.table["history_type_list"], _TYPES).to_numpy(), "unknown behaviour type")
        query = _query(raw.table["history_qry_list"].combine_chunks())
        canonical = {
            "user_id": _user_id(raw),
            "item_id": raw.table["history_wid_list"],
            "time_ms": pa.array(self._history_ms(line_E)),
            "query_id": query,
            "query_origin": pc.if_else(pc.is_valid(query), "typed", "none"),
            "label": pa.array(np.ones(len(line_E), np.int8)),
        }
        return raw, pa.table(canonical), rejects

    def search(self) -> tuple[Rows, pa.Table, Rejects]:
        """Candidates of each line's own search."""
        raw, line_E = self._expand("candidate_wid_list", "candidate_label_list")
        query = _query(text_of(self.rows.table["query"])).take(pa.array(line_E))
        label, _ = cast(raw.table["candidate_label_list"].combine_chunks(), pa.float64())
        canonical = {
            "user_id": _user_id(raw),
            "item_id": raw.table["candidate_wid_list"],
            "time_ms": pa.array(np.full(len(line_E), ANCHOR_MS)),
            "query_id": query,
            "query_origin": pc.if_else(pc.is_valid(query), "typed", "none"),
            "request_id": pa.repeat(pa.scalar("search"), len(line_E)),
            "label": pc.greater(label, 0).cast(pa.int8()),
        }
        return raw, pa.table(canonical), Rejects(len(line_E))

    def _expand(self, *names: str) -> tuple[Rows, Int[ndarray, " E"]]:
        line_E = pc.list_parent_indices(self.lists[names[0]]).to_numpy().astype(np.int64)
        table = pa.table({name: self.lists[name].flatten() for name in names})
        return Rows(table, self.rows.file, self.rows.row_N[line_E]), line_E

    def _history_ms(self, line_E: Int[ndarray, " E"]) -> Int[ndarray, " E"]:
        """The k-th behaviour lies before the search by the sum of the gaps that follow it."""
        gaps = self.lists["history_time_list"]
        seconds = np.concatenate([[0], np.cumsum(cast(gaps.flatten(), pa.int64())[0].to_numpy())])
        ends = np.cumsum(pc.list_value_length(gaps).to_numpy())
        # A line has one gap more than behaviours, so behaviour e of line l is gap e + (lines with a history before l).
        owner = pc.list_parent_indices(gaps).to_numpy()
        is_last = np.append(np.diff(owner) != 0, True) if len(owner) else np.empty(0, bool)
        at = np.flatnonzero(~is_last)
        return ANCHOR_MS - 1000 * (seconds[ends[line_E]] - seconds[at + 1])


def _split(column: pa.ChunkedArray) -> pa.ListArray:
    """`a_b_c` to a list; nothing to the empty list."""
    lists = pc.split_pattern(text_of(column), "_")
    length_N = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(length_N)]).astype(np.int32), lists.flatten())


def _query(terms: pa.Array) -> pa.Array:
    """Terms separated by spaces; "-1" and nothing are no query."""
    nothing = pc.is_in(terms, pa.array(["-1", ""]))
    return pc.if_else(nothing, pa.scalar(None, pa.string()), pc.replace_substring(terms, _TERM, " "))


def _user_id(rows: Rows) -> pa.Array:
    return pa.array(rows.row_N).cast(pa.string())
