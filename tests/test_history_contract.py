"""What every history store promises, LMDB and Redis alike: order, idempotence, and the same answers as plain Python."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.redis_server import RedisServer
from seminar.artifacts import Artifact
from seminar.errors import UnknownUser
from seminar.history.lmdb_store import LMDBHistoryStore
from seminar.history.redis_store import RedisHistoryStore
from seminar.history.store import Appended, CatalogueRows, Event, HistoryStore, Imported, StoredUser, import_histories
from seminar.sequences import Exposures, Histories, read_histories
from tests.history_oracle import Oracle, read_back
from tests.stores import needs_server

START_MS = 1_600_000_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    # What is promised under a crash is tested elsewhere, with an fsync a write.
    with RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes", "--appendfsync", "everysec") as running:
        yield running


@pytest.fixture(params=["lmdb", pytest.param("redis", marks=needs_server)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], HistoryStore]:
    """Opens a store that holds nothing."""
    if request.param == "lmdb":
        folders = iter(range(10**6))
        return lambda: LMDBHistoryStore(tmp_path / f"history{next(folders)}", max_gib=0.25)
    running: RedisServer = request.getfixturevalue("server")

    def opened() -> HistoryStore:
        with running.client() as client:
            client.flushall()
        return RedisHistoryStore(running.url, "everysec")

    return opened


@contextmanager
def closing(store: HistoryStore) -> Iterator[HistoryStore]:
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def histories(empty: Callable[[], HistoryStore]) -> Iterator[HistoryStore]:
    with closing(empty()) as store:
        yield store


def event(item: int, minute: int, **names: str | None) -> Event:
    return Event(f"i{item}", START_MS + 60_000 * minute, **names)


def items(store: HistoryStore, user: str) -> list[str]:
    return [item for _, item, _, _ in read_back(store, user)]


def test_store_keeps_its_protocol(histories: HistoryStore) -> None:
    assert isinstance(histories, HistoryStore)


def test_unknown_user_is_an_error_that_names_the_user(histories: HistoryStore) -> None:
    with pytest.raises(UnknownUser, match="'nobody'"):
        histories.read("nobody")


def test_next_read_sees_an_append_with_every_column(histories: HistoryStore) -> None:
    histories.append("u", [event(3, 0, query="q1"), event(5, 1)])
    assert histories.append("u", [event(3, 2, query="q2")]).length == 3
    minute = 60_000
    assert read_back(histories, "u") == [
        (START_MS, "i3", "q1", 0), (START_MS + minute, "i5", None, 1), (START_MS + 2 * minute, "i3", "q2", 2)
    ]  # fmt: skip
    assert histories.num_users == 1


def test_version_changes_with_every_append_that_adds_and_with_no_other(histories: HistoryStore) -> None:
    assert histories.version("u") is None
    seen = set()
    appends = [[event(1, 5, event_id="a")], [event(1, 5)], [event(2, 0)], [event(3, 9), event(4, 1)]]
    for events in appends:
        histories.append("u", events)
        seen.add(histories.version("u"))
    histories.append("u", [event(1, 5, event_id="a")])
    histories.append("v", [event(1, 5)])
    assert len(seen) == len(appends)
    assert histories.version("u") in seen


def test_version_changes_with_a_bulk_load_that_adds(histories: HistoryStore) -> None:
    versions = []
    for length in (3, 3, 5):
        histories.load(shard(histories, {"u": [(START_MS + step, f"i{step}") for step in range(length)]}))
        versions.append(histories.version("u"))
    assert versions[0] == versions[1] != versions[2]


def test_late_event_goes_to_its_place_and_equal_moments_keep_arrival(histories: HistoryStore) -> None:
    histories.append("u", [event(1, 10), event(2, 20)])
    histories.append("u", [event(3, 5), event(4, 10), event(5, 20)])
    assert items(histories, "u") == ["i3", "i1", "i4", "i2", "i5"]


def test_one_request_is_same_request_id_or_same_time_and_is_never_torn_apart(histories: HistoryStore) -> None:
    histories.append("u", [event(1, 30, request_id="b"), event(2, 20), event(3, 10, request_id="b"), event(4, 20)])
    history = histories.read("u")
    assert items(histories, "u") == ["i3", "i1", "i2", "i4"]
    assert history.request_L.tolist() == [0, 0, 1, 1]


def test_event_id_makes_an_append_idempotent_for_its_user_only(histories: HistoryStore) -> None:
    batch = [event(1, 0, event_id="a"), event(2, 1, event_id="b"), event(2, 1, event_id="b")]
    assert (histories.append("u", batch).accepted, histories.append("u", batch).accepted) == (2, 0)
    assert histories.append("u", [*batch, event(3, 2, event_id="c")]).duplicates == 3
    assert len(histories.read("u")) == 3
    assert histories.append("v", batch).accepted == 2


def test_ten_thousand_events_with_ids_are_one_append(histories: HistoryStore) -> None:
    batch = [event(i, i, event_id=f"e{i}", query=f"q{i}") for i in range(10_000)]
    assert histories.append("u", batch) == Appended(10_000, 0, 10_000)
    assert histories.append("u", batch) == Appended(0, 10_000, 10_000)
    assert items(histories, "u") == [f"i{i}" for i in range(10_000)]


def test_names_of_any_length_and_script_are_kept_whole_and_given_a_number_for_ever(histories: HistoryStore) -> None:
    names = ["x" * 600, "x" * 601, "é" * 300, "", "a b\n", "0"]
    local = histories.intern("items", names)
    assert local.tolist() == list(range(6))
    assert histories.names("items") == names
    assert histories.names("items", 4) == names[4:]
    assert histories.names("queries") == []
    assert histories.intern("items", ["new", *names]).tolist() == [6, *range(6)]
    assert histories.names_of("items", np.array([6, -1, 0])) == ["new", None, names[0]]


def test_names_by_the_ten_thousand_keep_their_order(histories: HistoryStore) -> None:
    names = [f"n{i}" for i in range(25_000)]
    assert np.array_equal(histories.intern("queries", names), np.arange(25_000))
    assert histories.names("queries") == names


def test_user_without_behaviours_is_known_and_empty(histories: HistoryStore) -> None:
    assert histories.load(shard(histories, {"without": [], "u": [(START_MS, "i1")]})) == Imported(2, 1)
    assert len(histories.read("without")) == 0
    assert histories.append("without", [event(1, 0)]).length == 1
    assert histories.num_users == 2


def test_loading_again_adds_only_what_is_newer(histories: HistoryStore) -> None:
    rows = [(START_MS + 60_000 * step, f"i{step}") for step in range(14)]
    histories.load(shard(histories, {"u": rows[:10]}))
    histories.append("u", [event(7, 11)])
    assert histories.load(shard(histories, {"u": rows})) == Imported(0, 2)
    assert items(histories, "u") == [f"i{i}" for i in (*range(10), 7, 12, 13)]
    assert np.array_equal(histories.read("u").request_L, np.arange(13))


def test_history_of_1e5_is_loaded_and_read_whole(histories: HistoryStore) -> None:
    steps = np.arange(100_000)
    histories.load(shard(histories, {"u": [(START_MS + int(step), f"i{step % 50}") for step in steps]}))
    assert np.array_equal(histories.read("u").time_ms_L, START_MS + steps)
    histories.append("u", [Event("late", START_MS - 1), Event("new", START_MS + 10**9)])
    history = histories.read("u")
    assert histories.names_of("items", history.item_L[[0, 1, -1]]) == ["late", "i0", "new"]


def test_catalogue_rows_follow_new_ids_and_keep_what_the_bundle_lacks(histories: HistoryStore) -> None:
    known = {"i1": 10, "i2": 20, "i9": 90}
    histories.append("u", [event(1, 0), event(5, 1)])
    rows = CatalogueRows(histories, "items", lambda names: np.array([known.get(n, -1) for n in names], np.int64))
    assert rows(histories.read("u").item_L).tolist() == [10, -1]
    histories.append("u", [event(9, 2), event(2, 3)])
    assert rows(histories.read("u").item_L).tolist() == [10, -1, 90, 20]
    assert rows(np.array([-1, 0], np.int32)).tolist() == [-1, 10]
    assert rows(np.empty(0, np.int32)).tolist() == []


users = st.sampled_from(["u", "v"])
event_rows = st.tuples(
    st.integers(0, 40),
    st.sampled_from([None, "r", "s"]),
    st.sampled_from([None, "a", "b", "c"]),
    st.sampled_from([None, "q", "p"]),
)
appends = st.tuples(st.just("append"), users, st.lists(event_rows, min_size=1, max_size=6))
loads = st.tuples(st.just("load"), users, st.lists(st.tuples(st.integers(0, 45), st.integers(0, 9)), max_size=5))
interleavings = st.lists(st.tuples(st.one_of(appends, loads), st.none() | st.one_of(appends, loads)), max_size=6)


def apply(store: HistoryStore, oracle: Oracle, step: Any) -> None:
    """One append or load, on both sides, with the same answer."""
    kind, user, rows = step
    if kind == "append":
        events = [event(i, row[0], query=row[3], event_id=row[2], request_id=row[1]) for i, row in enumerate(rows)]
        got, expected = store.append(user, events), oracle.append(user, events)
        assert (got.accepted, got.duplicates) == (expected.accepted, expected.duplicates)
        # An append of duplicates alone is over when it has looked.
        assert got.length == expected.length or (got.accepted == 0 and got.length < expected.length)
    else:
        loaded = sorted((START_MS + 60_000 * minute, f"i{item}") for minute, item in rows)
        assert store.load(shard(store, {user: loaded})).behaviours == oracle.load(user, loaded)


def interrupt(store: HistoryStore, other: Callable[[], None]) -> None:
    """Have `other` happen between the moment at which the next append or load looks and the one at which it writes.

    LMDB has no such moment: what looks has the lock already. So there it happens before.
    """
    if not isinstance(store, RedisHistoryStore):
        return other()

    def looked(really: Callable[..., Any], *args: Any) -> Any:
        found = really(*args)
        for method in ("_look", "_newer"):
            vars(store).pop(method, None)
        other()
        return found

    for method in ("_look", "_newer"):
        setattr(store, method, partial(looked, getattr(store, method)))
    return None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=interleavings)
def test_any_interleaving_of_appends_and_loads_equals_plain_python(empty: Callable[[], HistoryStore], steps: list[Any]) -> None:
    oracle = Oracle()
    with pytest.MonkeyPatch.context() as patch, closing(empty()) as store:
        patch.setattr("seminar.history.lmdb_store.CHUNK", 3)
        for step, meanwhile in steps:
            if meanwhile is not None:
                interrupt(store, partial(apply, store, oracle, meanwhile))
            apply(store, oracle, step)
        for user in oracle.users:
            assert read_back(store, user) == oracle.read(user)
        assert store.num_users == len(oracle.users)


def test_threads_that_append_to_one_user_lose_and_double_nothing(histories: HistoryStore) -> None:
    def work(name: int) -> None:
        for n in range(25):
            batch = [Event(f"{name}-{n}-{k}", START_MS + 1000 * n, event_id=f"{name}-{n}-{k}") for k in range(3)]
            for _ in range(2):
                histories.append("u", batch)
            histories.append(f"own{name}", batch[:1])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = read_back(histories, "u")
    assert sorted(item for _, item, _, _ in stored) == sorted(
        f"{t}-{n}-{k}" for t in range(4) for n in range(25) for k in range(3)
    )
    assert [time_ms for time_ms, *_ in stored] == sorted(time_ms for time_ms, *_ in stored)
    assert [request for *_, request in stored] == [place // 3 for place in range(300)]
    assert histories.num_users == 5


def shard(store: HistoryStore, rows: dict[str, list[tuple[int, str]]]) -> Histories:
    """Users with behaviours (time, item), oldest first, each its own request; items interned."""
    flat = [row for behaviours in rows.values() for row in behaviours]
    lengths = [len(behaviours) for behaviours in rows.values()]
    names = sorted({item for _, item in flat})
    local = dict(zip(names, store.intern("items", names).tolist(), strict=True))
    none = np.empty(0, np.int32)
    return Histories(
        offsets=np.cumsum([0, *lengths]),
        user_id=list(rows),
        user_attributes=[[] for _ in rows],
        item=np.array([local[item] for _, item in flat], np.int32),
        query=np.full(len(flat), -1, np.int32),
        origin=np.zeros(len(flat), np.int8),
        time_ms=np.array([time_ms for time_ms, _ in flat], np.int64),
        request=np.array([place for length in lengths for place in range(length)], np.int32),
        train_end=np.array(lengths),
        val_end=np.array(lengths),
        exposures=Exposures(np.zeros(len(rows) + 1, np.int64), none, none, none),
    )


def shards(pairs: Artifact) -> list[Histories]:
    names = [name for name in pairs.manifest.files if name.startswith("shards/")]
    return [read_histories(pq.read_table(pairs.file(name))) for name in names]


def test_imported_histories_equal_the_pairs_artefact(histories: HistoryStore, tiny_pairs: Artifact) -> None:
    imported = import_histories(histories, tiny_pairs)
    assert imported.behaviours == tiny_pairs.manifest.metrics["behaviours"]
    assert imported.users == histories.num_users == tiny_pairs.manifest.metrics["users"]
    ids = pq.read_table(tiny_pairs.file("items.parquet"))["item_id"].to_pylist()
    row_of = {name: row for row, name in enumerate(ids)}
    rows = CatalogueRows(histories, "items", lambda names: np.array([row_of[n] for n in names], np.int64))
    for part in shards(tiny_pairs):
        for row, user in enumerate(part.user_id):
            stored, span = histories.read(user), part.span(row)
            assert np.array_equal(rows(stored.item_L), part.item[span])
            assert np.array_equal(stored.time_ms_L, part.time_ms[span])
            assert np.array_equal(stored.request_L, part.request[span])
    assert import_histories(histories, tiny_pairs).behaviours == 0


def test_import_that_was_killed_goes_on(histories: HistoryStore, tiny_pairs: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Histories] = []
    load_really = histories.load

    def load(part: Histories) -> Imported:
        if len(loaded) == 2:
            raise KeyboardInterrupt
        loaded.append(part)
        return load_really(part)

    with monkeypatch.context() as patch:
        patch.setattr(histories, "load", load)
        with pytest.raises(KeyboardInterrupt):
            import_histories(histories, tiny_pairs)
    assert 0 < histories.num_users < tiny_pairs.manifest.metrics["users"]
    assert import_histories(histories, tiny_pairs).users == tiny_pairs.manifest.metrics["users"] - sum(
        len(part.user_id) for part in loaded
    )
    assert sum(len(histories.read(user)) for part in shards(tiny_pairs) for user in part.user_id) == sum(
        len(part.item) for part in shards(tiny_pairs)
    )


def test_replicas_that_start_together_import_once(
    histories: HistoryStore, tiny_pairs: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    load_really = histories.load

    def load(part: Histories) -> Imported:
        loads.append(threading.get_ident())
        return load_really(part)

    monkeypatch.setattr(histories, "load", load)
    monkeypatch.setattr("seminar.history.redis_server.POLL_S", 0.01)
    results: list[Imported] = []
    threads = [threading.Thread(target=lambda: results.append(import_histories(histories, tiny_pairs))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == len(shards(tiny_pairs))
    assert len(set(loads)) == 1
    assert sorted(result.users for result in results) == [0, 0, tiny_pairs.manifest.metrics["users"]]


def test_users_are_found_by_the_beginning_of_their_id(histories: HistoryStore) -> None:
    for user in ("b", "a2", "a", "é1", "a1"):
        histories.append(user, [event(1, 3), event(2, 1)])
    histories.load(shard(histories, {"without": []}))
    newest = START_MS + 180_000
    assert histories.users("a", 2) == [StoredUser("a", 2, newest), StoredUser("a1", 2, newest)]
    assert [user.user_id for user in histories.users("", 10)] == ["a", "a1", "a2", "b", "without", "é1"]
    assert [user.user_id for user in histories.users("é", 10)] == ["é1"]
    assert histories.users("with", 10) == [StoredUser("without", 0, None)]
    assert histories.users("c", 10) == []
