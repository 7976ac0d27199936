"""Oracle: the same rules written as plain Python loops over dictionaries, one user at a time."""

import json
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seminar.config import PrepareConfig
from seminar.data.catalogue import extend_catalogue, item_catalogue, query_catalogue, with_train_counts, with_weekly_counts
from seminar.data.pairs import build_shard
from seminar.data.weekly import COUNTS
from seminar.errors import DataError
from seminar.schema import CATALOGUE_ITEMS, EVENTS, ITEMS, MS_PER_WEEK, ORIGINS, PAIRS, QUERIES, USERS
from seminar.sequences import read_histories

ITEM_IDS = pa.array([f"i{n}" for n in range(10)])
QUERY_IDS = pa.array([f"q{n}" for n in range(5)])
NO_USERS = USERS.empty_table()


def event(user="u", item="i0", time=0, query=None, origin="none", request=None, label=1):
    row = (user, item, time, query, origin, request, label)
    return dict(zip(EVENTS.names, row, strict=True))


def shard(events, users=NO_USERS, **config):
    table = pa.Table.from_pylist(events, schema=EVENTS)
    return build_shard(table, users, ITEM_IDS, QUERY_IDS, PrepareConfig(**config))


def history(built, user="u"):
    """The user's columns joined over chunks, with ids instead of catalogue rows."""
    rows = [r for r in built.pairs.to_pylist() if r["user_id"] == user]
    whole = {name: [x for r in rows for x in r[name]] for name in PAIRS.names if isinstance(rows[0][name], list)}
    ids = [f"i{i}" for i in whole["item"]]
    return {**rows[0], **whole, "item": ids, "exposed_item": [f"i{i}" for i in whole["exposed_item"]]}


def oracle(events, config):
    """user -> (behaviours, request numbers, exposures, train_end, val_end) by plain loops."""
    distinct = []
    for row in events:
        if row not in distinct:
            distinct.append(row)
    out = {}
    for user in sorted({r["user_id"] for r in distinct}):
        requests = {}
        for place, row in enumerate(distinct):
            if row["user_id"] == user:
                key = ("named", row["request_id"]) if row["request_id"] is not None else ("moment", row["time_ms"])
                requests.setdefault(key, []).append((row["time_ms"], place, row))
        taken = [(sorted((x for x in rows if x[2]["label"]), key=lambda x: x[:2]), rows) for rows in requests.values()]
        taken = sorted((x for x in taken if x[0]), key=lambda x: (x[0][0][0], min(p for _, p, _ in x[0])))
        in_time = sorted(
            ((time, whole, place, row) for whole, (bought, _) in enumerate(taken) for time, place, row in bought),
            key=lambda x: x[:3],
        )
        behaviours, number, runs, before = [], -1, {}, None
        for _, whole, _, row in in_time:
            number += whole != before
            before = whole
            runs.setdefault(whole, number)
            behaviours.append((number, row))
        behaviours = behaviours[-config.max_history :]
        first = behaviours[0][0] if behaviours else 0
        exposures = []
        for number, (bought, rows) in sorted(((runs[w], r) for w, r in enumerate(taken)), key=lambda x: x[0]):
            items = {row["item_id"] for _, _, row in bought}
            shown = sorted((x for x in rows if not x[2]["label"] and x[2]["item_id"] not in items), key=lambda x: x[:2])
            exposures += [(number - first, row) for _, _, row in shown if number >= first]
        numbers = [number - first for number, _ in behaviours]
        out[user] = ([r for _, r in behaviours], numbers, exposures, *oracle_split(behaviours, numbers, config))
    return out


def oracle_split(behaviours, numbers, config):
    starts = [i for i, n in enumerate(numbers) if i == 0 or n != numbers[i - 1]] + [len(numbers)]
    count = len(starts) - 1
    if config.test_from is not None:
        limit = config.test_from.timestamp() * 1000
        test = sum(behaviours[s][1]["time_ms"] < limit for s in starts[:-1])
    else:
        test = count - 1 if count >= 2 else count
    validation = test - 1 if test >= 2 else test
    return starts[validation], starts[test]


def random_events(seed, size=120):
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(size):
        query = int(draw.integers(-1, 5))
        rows.append(
            event(
                user=f"u{draw.integers(5)}",
                item=f"i{draw.integers(10)}",
                time=int(draw.integers(15)),
                query=None if query < 0 else f"q{query}",
                origin="none" if query < 0 else "typed",
                request=None if draw.random() < 0.5 else f"r{draw.integers(4)}",
                label=int(draw.random() < 0.7),
            )
        )
    return rows + rows[:: max(size // 10, 1)]


CONFIGS = [
    PrepareConfig(),
    PrepareConfig(chunk_length=3, max_history=7),
    PrepareConfig(chunk_length=1, holdout="time", test_from=datetime.fromtimestamp(0.008, UTC)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["default", "short", "time"])
@given(seed=st.integers(0, 2**32), size=st.integers(1, 150))
@settings(max_examples=25, deadline=None)
def test_shard_equals_plain_loops(config, seed, size):
    events = random_events(seed, size)
    built = shard(events, **config.model_dump())
    expected = oracle(events, config)
    assert built.pairs.schema == PAIRS
    assert sorted(expected) == sorted(set(built.pairs["user_id"].to_pylist()))
    assert len(built.duplicates) == len(events) - len({json.dumps(e) for e in events})
    train = Counter()
    for user, (behaviours, requests, exposures, train_end, val_end) in expected.items():
        got = history(built, user)
        assert got["item"] == [row["item_id"] for row in behaviours]
        assert got["query"] == [int(row["query_id"][1:]) if row["query_id"] else -1 for row in behaviours]
        assert [ORIGINS[o] for o in got["origin"]] == [row["query_origin"] for row in behaviours]
        assert got["time_ms"] == [row["time_ms"] for row in behaviours]
        assert got["request"] == requests
        assert (got["history_length"], got["train_end"], got["val_end"]) == (len(behaviours), train_end, val_end)
        assert list(zip(got["exposed_request"], got["exposed_item"], strict=True)) == [(n, r["item_id"]) for n, r in exposures]
        train.update((row["item_id"], row["time_ms"] // MS_PER_WEEK) for row in behaviours[:train_end])
    assert {(f"i{r['row']}", r["week"]): r["count"] for r in built.item_counts.to_pylist()} == train


def test_chunks_cut_histories_without_losing_order_or_exposures():
    events = [event(item=f"i{n % 10}", time=n) for n in range(7)] + [event(item="i9", time=n, label=0) for n in (2, 6)]
    rows = shard(events, chunk_length=3).pairs.to_pylist()
    assert [(r["chunk"], r["start"], len(r["item"])) for r in rows] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]
    assert [r["exposed_request"] for r in rows] == [[2], [], [6]]


def test_exposure_is_stored_with_the_first_behaviour_of_its_request():
    events = [event(item=f"i{n}", time=5, request="basket") for n in range(4)] + [
        event(item="i9", time=9, request="basket", label=0)
    ]
    rows = shard(events, chunk_length=2).pairs.to_pylist()
    assert [r["exposed_item"] for r in rows] == [[9], []]


def test_user_without_behaviours_has_one_empty_chunk_and_its_attributes():
    users = pa.Table.from_pylist([{"user_id": "quiet", "attributes": ["age=35"]}], schema=USERS)
    built = shard([event(user="window-shopper", label=0)], users)
    for row, attributes in zip(built.pairs.to_pylist(), (["age=35"], None), strict=True):
        assert row["item"] == row["exposed_item"] == []
        assert (row["chunk"], row["history_length"], row["train_end"], row["val_end"]) == (0, 0, 0, 0)
        assert row["user_attributes"] == attributes
    assert built.counts["exposures_dropped"] == 1
    assert len(read_histories(built.pairs)) == 2


def test_shard_without_users_is_an_empty_table():
    assert shard([]).pairs.equals(PAIRS.empty_table())


def test_user_with_a_hundred_thousand_behaviours_keeps_all_in_order():
    size = 100_000
    times = np.random.default_rng(3).permutation(size)
    table = pa.table(
        {
            "user_id": pa.repeat("u", size),
            "item_id": ITEM_IDS.take(pa.array(times % 10)),
            "time_ms": times,
            "query_id": pa.nulls(size, pa.string()),
            "query_origin": pa.repeat("none", size),
            "request_id": pa.nulls(size, pa.string()),
            "label": np.ones(size, np.int8),
        },
        schema=EVENTS,
    )
    built = build_shard(table, NO_USERS, ITEM_IDS, QUERY_IDS, PrepareConfig())
    whole = read_histories(built.pairs)
    assert whole.time_ms.tolist() == list(range(size))
    assert whole.item.tolist() == [n % 10 for n in range(size)]
    assert built.pairs.num_rows == -(-size // 512)
    assert (whole.train_end[0], whole.val_end[0]) == (size - 2, size - 1)


def test_items_of_one_moment_keep_file_order_and_form_one_request():
    got = history(shard([event(item=i, time=5) for i in ("i7", "i2", "i9")] + [event(item="i1", time=4)]))
    assert got["item"] == ["i1", "i7", "i2", "i9"]
    assert got["request"] == [0, 1, 1, 1]


def test_a_basket_is_cut_where_another_happens_so_that_no_history_holds_the_future():
    events = [event(item="i1", time=1, request="a"), event(item="i2", time=2, request="b"), event(item="i3", time=3, request="a")]
    got = history(shard(events))
    assert got["item"] == ["i1", "i2", "i3"]
    assert got["request"] == [0, 1, 2]


def test_same_request_id_of_two_users_is_two_requests():
    built = shard([event(user="a", request="r"), event(user="b", request="r")])
    assert history(built, "a")["request"] == history(built, "b")["request"] == [0]


def test_newest_behaviours_are_kept_and_the_rest_counted():
    built = shard([event(item=f"i{n}", time=n) for n in range(6)], max_history=4)
    got = history(built)
    assert (got["item"], got["request"]) == (["i2", "i3", "i4", "i5"], [0, 1, 2, 3])
    assert built.counts["trimmed"] == 2


def test_only_rows_equal_in_every_column_are_duplicates():
    same_item_other_query = event(query="q1", origin="typed")
    built = shard([event(), same_item_other_query, event(), event(label=0)])
    assert built.duplicates.tolist() == [2]
    assert built.counts["behaviours"] == 2


def test_item_both_taken_and_shown_is_no_negative():
    built = shard([event(item="i1"), event(item="i1", label=0), event(item="i2", label=0)])
    assert history(built)["exposed_item"] == ["i2"]
    assert built.counts["exposures_dropped"] == 1


@pytest.mark.parametrize(("num_requests", "expected"), [(0, (0, 0)), (1, (1, 1)), (2, (1, 1)), (3, (1, 2)), (5, (3, 4))])
def test_last_request_is_test_only_when_it_has_a_history(num_requests, expected):
    users = pa.Table.from_pylist([{"user_id": "u"}], schema=USERS)
    got = history(shard([event(time=n) for n in range(num_requests)], users))
    assert (got["train_end"], got["val_end"]) == expected


@pytest.mark.parametrize(("early", "expected"), [(0, (0, 0)), (1, (1, 1)), (2, (1, 2)), (4, (3, 4))])
def test_time_split_holds_out_everything_from_the_given_moment(early, expected):
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    start = int(moment.timestamp() * 1000)
    events = [event(time=start - early + n) for n in range(early + 2)]
    got = history(shard(events, holdout="time", test_from=moment))
    assert (got["train_end"], got["val_end"]) == expected


def test_unknown_item_is_an_error_that_names_it():
    with pytest.raises(DataError, match="item_id: got 'ghost'"):
        shard([event(item="ghost")])


def items_table(*rows):
    return pa.Table.from_pylist([{"item_id": i, "text": t, "category": c} for i, t, c in rows], schema=ITEMS)


def column(*ids):
    return pa.chunked_array([pa.array(ids, pa.string())])


def test_catalogue_is_the_sorted_union_and_knows_what_lacks_metadata():
    got = item_catalogue(items_table(("b", "bread", "food"), ("c", None, None)), column("d", "a", "b", "a"))
    assert got.schema == CATALOGUE_ITEMS
    assert got["item_id"].to_pylist() == ["a", "b", "c", "d"]
    assert got["has_metadata"].to_pylist() == [False, True, True, False]
    assert got["category_index"].to_pylist() == [-1, 0, -1, -1]


def test_repeated_metadata_rows_keep_the_first():
    got = item_catalogue(items_table(("a", "first", None), ("a", "second", None)), column("a"))
    assert got["text"].to_pylist() == ["first"]


def test_continued_catalogue_keeps_old_rows_and_appends_new_ones_sorted():
    old = item_catalogue(items_table(("m", "milk", "food"), ("z", "soap", "home")), column("x"))
    new = item_catalogue(items_table(("a", "apple", "drink"), ("m", "milk 1 l", "food"), ("c", None, "food")), column("z", "x"))
    got = extend_catalogue(old, new)
    assert got["item_id"].to_pylist() == ["m", "x", "z", "a", "c"]
    assert got["text"].to_pylist() == ["milk 1 l", None, "soap", "apple", None]
    assert got["has_metadata"].to_pylist() == [True, False, True, True, True]
    assert got["category_index"].to_pylist() == [0, -1, 1, 2, 0]
    again = extend_catalogue(got, new)
    assert again.equals(got)


def test_query_texts_survive_a_continuation_without_them():
    old = query_catalogue(pa.Table.from_pylist([{"query_id": "q", "text": "green tea"}], schema=QUERIES), column("q"))
    got = extend_catalogue(old, query_catalogue(QUERIES.empty_table(), column("q", "p")))
    assert got.to_pylist() == [
        {"query_id": "q", "text": "green tea", "train_count": 0},
        {"query_id": "p", "text": None, "train_count": 0},
    ]


def test_train_counts_add_up_over_shards():
    catalogue = query_catalogue(QUERIES.empty_table(), column("a", "b"))
    counts = [
        pa.table({"row": pa.array(r, pa.int32()), "count": pa.array(c, pa.int64())}) for r, c in (([1], [2]), ([0, 1], [5, 1]))
    ]
    assert with_train_counts(catalogue, counts)["train_count"].to_pylist() == [5, 3]


def test_weekly_counts_add_up_over_shards():
    catalogue = item_catalogue(ITEMS.empty_table(), column("a", "b", "c"))
    shards = [([2, 2], [7, 9], [1, 2]), ([], [], []), ([0, 2, 2], [9, 8, 9], [4, 1, 5])]
    got = with_weekly_counts(catalogue, [pa.table(list(columns), schema=COUNTS) for columns in shards])
    assert got.schema == CATALOGUE_ITEMS
    assert got["week"].to_pylist() == [[9], [], [7, 8, 9]]
    assert got["week_count"].to_pylist() == [[4], [], [1, 1, 7]]
    assert got["train_count"].to_pylist() == [4, 0, 9]
    assert extend_catalogue(got, catalogue).equals(catalogue), "counts restart"
