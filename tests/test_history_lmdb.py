"""The LMDB store's own promises: speed, size, format. What all stores promise is in test_history_contract.py."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from seminar.errors import ArtifactError
from seminar.history.lmdb_store import CHUNK, LMDBHistoryStore
from seminar.history.store import Event, HistoryFull, UserHistory
from seminar.sequences import Exposures, Histories

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


def test_history_of_1e5_reads_in_milliseconds_and_grows_by_one_chunk(histories: LMDBHistoryStore) -> None:
    length = 100_000
    histories.load(flat_histories(histories, length))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        history = histories.read("u0")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.1
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
