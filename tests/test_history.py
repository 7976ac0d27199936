"""Histories: in order, durable, idempotent, shared, and independent of any bundle."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seminar.artifacts import Artifact
from seminar.errors import ArtifactError, UnknownUser
from seminar.history.lmdb_store import CHUNK, LMDBHistoryStore
from seminar.history.store import CatalogueRows, Event, HistoryFull, HistoryStore, Imported, UserHistory, import_histories
from seminar.sequences import Exposures, Histories, read_histories

START_MS = 1_600_000_000_000


@pytest.fixture
def histories(tmp_path: Path) -> Iterator[LMDBHistoryStore]:
    store = LMDBHistoryStore(tmp_path / "history", max_gib=0.25)
    yield store
    store.close()


def event(item: int, minute: int, **names: str) -> Event:
    return Event(f"i{item}", START_MS + 60_000 * minute, **names)


def items_of(store: LMDBHistoryStore, history: UserHistory) -> list[str | None]:
    return store.names_of("items", history.item_L)


def test_store_keeps_its_protocol(histories: LMDBHistoryStore) -> None:
    assert isinstance(histories, HistoryStore)


def test_unknown_user_is_an_error_that_names_the_user(histories: LMDBHistoryStore) -> None:
    with pytest.raises(UnknownUser, match="'nobody'"):
        histories.read("nobody")


def test_next_read_sees_an_append_with_every_column(histories: LMDBHistoryStore) -> None:
    histories.append("u", [event(3, 0, query="q1"), event(5, 1)])
    assert histories.append("u", [event(3, 2, query="q2")]).length == 3
    history = histories.read("u")
    assert items_of(histories, history) == ["i3", "i5", "i3"]
    assert histories.names_of("queries", history.query_L) == ["q1", None, "q2"]
    assert history.time_ms_L.tolist() == [START_MS, START_MS + 60_000, START_MS + 120_000]
    assert history.request_L.tolist() == [0, 1, 2]


def test_version_changes_with_every_append_that_adds_and_with_no_other(histories: LMDBHistoryStore) -> None:
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


def test_version_changes_with_a_bulk_load_that_adds(histories: LMDBHistoryStore) -> None:
    versions = []
    for length in (3, 3, 5):
        histories.load(flat_histories(histories, length))
        versions.append(histories.version("u0"))
    assert versions[0] == versions[1] != versions[2]


def test_late_event_goes_to_its_place_and_equal_moments_keep_arrival(histories: LMDBHistoryStore) -> None:
    histories.append("u", [event(1, 10), event(2, 20)])
    histories.append("u", [event(3, 5), event(4, 10), event(5, 20)])
    assert items_of(histories, histories.read("u")) == ["i3", "i1", "i4", "i2", "i5"]


def test_one_request_is_same_request_id_or_same_time_and_is_never_torn_apart(histories: LMDBHistoryStore) -> None:
    torn = [event(1, 30, request_id="b"), event(2, 20), event(3, 10, request_id="b"), event(4, 20)]
    histories.append("u", torn)
    history = histories.read("u")
    assert items_of(histories, history) == ["i3", "i1", "i2", "i4"]
    assert history.request_L.tolist() == [0, 0, 1, 1]


def test_event_id_makes_an_append_idempotent_for_its_user_only(histories: LMDBHistoryStore) -> None:
    batch = [event(1, 0, event_id="a"), event(2, 1, event_id="b"), event(2, 1, event_id="b")]
    assert (histories.append("u", batch).accepted, histories.append("u", batch).accepted) == (2, 0)
    assert histories.append("u", [*batch, event(3, 2, event_id="c")]).duplicates == 3
    assert len(histories.read("u")) == 3
    assert histories.append("v", batch).accepted == 2


def test_names_longer_than_a_key_are_kept_whole(histories: LMDBHistoryStore) -> None:
    names = ["x" * 600, "x" * 601, "é" * 300, ""]
    local = histories.intern("items", names)
    assert len(set(local.tolist())) == 4
    assert histories.names("items") == names
    assert histories.intern("items", names).tolist() == local.tolist()


@contextmanager
def temporary_store() -> Iterator[LMDBHistoryStore]:
    with tempfile.TemporaryDirectory() as folder:
        store = LMDBHistoryStore(folder, max_gib=0.05)
        yield store
        store.close()


requests = st.tuples(st.integers(0, 40), st.sampled_from([None, "r", "s"]))


@settings(max_examples=25, deadline=None)
@given(appends=st.lists(st.lists(requests, min_size=1, max_size=6), max_size=8))
def test_any_order_of_appends_equals_sorting_whole_requests(appends: list[list[tuple[int, str | None]]]) -> None:
    expected: list[tuple[int, int, int, int]] = []
    sequence = 0
    with pytest.MonkeyPatch.context() as patch, temporary_store() as store:
        patch.setattr("seminar.history.lmdb_store.CHUNK", 3)
        for number, batch in enumerate(appends):
            store.append("u", [event(sequence + i, minute, request_id=name) for i, (minute, name) in enumerate(batch)])
            groups = [name or minute for minute, name in batch]
            starts = [min(m for (m, _), g in zip(batch, groups, strict=True) if g == group) for group in groups]
            for i, (minute, _) in enumerate(batch):
                expected.append((starts[i], number * 100 + groups.index(groups[i]), minute, sequence + i))
            sequence += len(batch)
        if appends:
            assert items_of(store, store.read("u")) == [f"i{item}" for *_, item in sorted(expected)]
            assert np.all(np.diff(store.read("u").request_L) >= 0)


def test_history_of_1e5_reads_in_milliseconds_and_grows_by_one_chunk(histories: LMDBHistoryStore) -> None:
    length = 100_000
    histories.load(flat_histories(histories, length))
    began = time.perf_counter()
    history = histories.read("u0")
    assert time.perf_counter() - began < 0.1
    assert np.array_equal(history.time_ms_L, START_MS + 60_000 * np.arange(length))
    before = histories.path.joinpath("data.mdb").stat().st_size
    for extra in range(20):
        histories.append("u0", [event(0, length + extra)])
    assert histories.path.joinpath("data.mdb").stat().st_size - before < 40 * CHUNK * 20
    assert len(histories.read("u0")) == length + 20


def flat_histories(store: LMDBHistoryStore, length: int) -> Histories:
    local = store.intern("items", [f"i{i}" for i in range(50)])
    steps = np.arange(length)
    empty = np.empty(0, np.int32)
    return Histories(
        offsets=np.array([0, length, length]),
        user_id=["u0", "without"],
        user_attributes=[[], []],
        item=local[steps % 50],
        query=np.full(length, -1, np.int32),
        origin=np.zeros(length, np.int8),
        time_ms=START_MS + 60_000 * steps,
        request=steps.astype(np.int32),
        train_end=np.array([length, 0]),
        val_end=np.array([length, 0]),
        exposures=Exposures(np.zeros(3, np.int64), empty, empty, empty),
    )


def test_user_without_behaviours_is_known_and_empty(histories: LMDBHistoryStore) -> None:
    histories.load(flat_histories(histories, 3))
    assert len(histories.read("without")) == 0
    assert histories.append("without", [event(1, 0)]).length == 1


def test_loading_again_adds_only_what_is_newer(histories: LMDBHistoryStore) -> None:
    histories.load(flat_histories(histories, 10))
    histories.append("u0", [event(7, 11)])
    again = histories.load(flat_histories(histories, 14))
    assert (again.users, again.behaviours) == (0, 2)
    history = histories.read("u0")
    assert items_of(histories, history) == [f"i{i}" for i in (*range(10), 7, 12, 13)]
    assert np.array_equal(history.request_L, np.arange(13))


def test_catalogue_rows_follow_new_ids_and_keep_what_the_bundle_lacks(histories: LMDBHistoryStore) -> None:
    known = {"i1": 10, "i2": 20, "i9": 90}
    histories.append("u", [event(1, 0), event(5, 1)])
    rows = CatalogueRows(histories, "items", lambda names: np.array([known.get(n, -1) for n in names], np.int64))
    assert rows(histories.read("u").item_L).tolist() == [10, -1]
    histories.append("u", [event(9, 2), event(2, 3)])
    assert rows(histories.read("u").item_L).tolist() == [10, -1, 90, 20]
    assert rows(np.array([-1, 0], np.int32)).tolist() == [-1, 10]
    assert rows(np.empty(0, np.int32)).tolist() == []


def test_full_store_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = LMDBHistoryStore(tmp_path / "small", max_gib=0.001)
    store.append("u", [event(0, 0)])
    with pytest.raises(HistoryFull, match="max_history_gib"):
        store.append("v", [event(i, i) for i in range(15_000)])
    assert len(store.read("u")) == 1
    store.close()


def test_other_format_is_refused_with_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LMDBHistoryStore(tmp_path / "h", max_gib=0.01).close()
    monkeypatch.setattr("seminar.history.lmdb_store.FORMAT", b"2")
    with pytest.raises(ArtifactError, match="got format 1, expected format 2"):
        LMDBHistoryStore(tmp_path / "h", max_gib=0.01)


WRITER = """
import sys
from seminar.history.store import Event
from seminar.history.lmdb_store import LMDBHistoryStore
store = LMDBHistoryStore(sys.argv[1], max_gib=0.25)
for n in range(10**9):
    done = store.append(sys.argv[2], [Event(f"i{n}-{k}", 10**12 + n, event_id=f"{n}-{k}") for k in range(7)])
    print(done.length, flush=True)
"""


def test_two_killed_writers_lose_nothing_they_were_told_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "history"
    reader = LMDBHistoryStore(path, max_gib=0.25)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), user], stdout=subprocess.PIPE, text=True) for user in "uv"
    ]
    told = {}
    for user, writer in zip("uv", writers, strict=True):
        assert writer.stdout is not None
        told[user] = [int(writer.stdout.readline()) for _ in range(50)][-1]
        assert len(reader.read(user)) >= told[user]
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    for user, writer in zip("uv", writers, strict=True):
        assert writer.stdout is not None
        told[user] = max([told[user], *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
    reader.close()
    store = LMDBHistoryStore(path, max_gib=0.25)
    for user, length in told.items():
        history = store.read(user)
        assert len(history) >= length
        assert len(history) % 7 == 0
        assert items_of(store, history)[:8] == [*(f"i0-{k}" for k in range(7)), "i1-0"]
    assert store.append("u", [Event("after", 2 * 10**12)]).accepted == 1
    store.close()


def test_imported_histories_equal_the_pairs_artefact(histories: LMDBHistoryStore, tiny_pairs: Artifact) -> None:
    imported = import_histories(histories, tiny_pairs)
    assert imported.behaviours == tiny_pairs.manifest.metrics["behaviours"]
    assert imported.users == histories.num_users == tiny_pairs.manifest.metrics["users"]
    ids = pq.read_table(tiny_pairs.file("items.parquet"))["item_id"].to_pylist()
    row_of = {name: row for row, name in enumerate(ids)}
    rows = CatalogueRows(histories, "items", lambda names: np.array([row_of[n] for n in names], np.int64))
    for name in [n for n in tiny_pairs.manifest.files if n.startswith("shards/")]:
        shard = read_histories(pq.read_table(tiny_pairs.file(name)))
        for row, user in enumerate(shard.user_id):
            stored, span = histories.read(user), shard.span(row)
            assert np.array_equal(rows(stored.item_L), shard.item[span])
            assert np.array_equal(stored.time_ms_L, shard.time_ms[span])
            assert np.array_equal(stored.request_L, shard.request[span])
    assert import_histories(histories, tiny_pairs).behaviours == 0


def test_import_that_was_killed_goes_on(
    histories: LMDBHistoryStore, tiny_pairs: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Histories] = []

    def load(self: LMDBHistoryStore, shard: Histories) -> Imported:
        if len(loaded) == 2:
            raise KeyboardInterrupt
        loaded.append(shard)
        return load_really(self, shard)

    load_really = LMDBHistoryStore.load
    monkeypatch.setattr(LMDBHistoryStore, "load", load)
    with pytest.raises(KeyboardInterrupt):
        import_histories(histories, tiny_pairs)
    monkeypatch.setattr(LMDBHistoryStore, "load", load_really)
    assert 0 < histories.num_users < tiny_pairs.manifest.metrics["users"]
    import_histories(histories, tiny_pairs)
    assert histories.num_users == tiny_pairs.manifest.metrics["users"]
    total = sum(len(histories.read(user)) for shard in loaded for user in shard.user_id)
    assert total == sum(len(shard.item) for shard in loaded)
