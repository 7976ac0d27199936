"""Packed keys on disk: the same answers as keys packed afresh, appended without repacking, never of another history or bundle."""

import hashlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seminar.errors import VersionMismatch
from seminar.kernels import int8
from seminar.retrieval import key_store
from seminar.retrieval.base import Keys, TopK
from seminar.retrieval.int8 import Int8Index, Levels, PackedKeys
from seminar.retrieval.key_store import KeyStore
from tests.retrieval_world import Catalogue, shared_catalogue


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_store, "CHUNK", 128)
    monkeypatch.setattr(key_store, "WRITE_BACK", 10)


@pytest.fixture
def world() -> Catalogue:
    return shared_catalogue()


@pytest.fixture
def keys_on_disk(world: Catalogue, tmp_path: Path) -> Iterator[KeyStore]:
    opened = KeyStore(tmp_path / "keys", world.space, "bundle-1", max_gib=0.1)
    yield opened
    opened.close()


def found(stored: KeyStore, world: Catalogue, keys: Keys, user: str = "u", k: int = 20) -> TopK:
    with stored.index(user, keys) as index:
        assert len(index) == len(keys)
        return index.top_k(world.probe(9, 1), k)


def packed_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many behaviours each later call of the packing kernel packs."""
    counts: list[int] = []
    pack = int8.pack
    monkeypatch.setattr(int8, "pack", lambda key, *rest: (counts.append(len(key)), pack(key, *rest))[1])
    return counts


@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 128, 129, 1000])
def test_stored_keys_give_what_fresh_ones_give(world: Catalogue, keys_on_disk: KeyStore, length: int) -> None:
    keys = world.keys(length, 3)
    fresh = Int8Index(PackedKeys.of(world.space.merged(keys).numpy())).top_k(world.probe(9, 1), 20)
    for _ in range(2):  # packed in memory, then read from the map
        top = found(keys_on_disk, world, keys)
        assert torch.equal(top.index_TK, fresh.index_TK)
        torch.testing.assert_close(top.relevance_TK, fresh.relevance_TK)


def test_a_history_that_grows_is_packed_once(world: Catalogue, keys_on_disk: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world.keys(500, 4)
    found(keys_on_disk, world, whole[:400])
    counts = packed_rows(monkeypatch)
    found(keys_on_disk, world, whole[:400])
    assert not counts
    found(keys_on_disk, world, whole[:405])
    assert counts == [5], "few new behaviours are packed for the request alone"
    found(keys_on_disk, world, whole[:450])
    assert sum(counts[1:]) == 50 + 50, "for the request, and behind what the store has"
    counts.clear()
    found(keys_on_disk, world, whole[:450])
    assert not counts
    same_levels = found(keys_on_disk, world, whole)
    with keys_on_disk.index("u", whole) as index:
        direct = Int8Index(PackedKeys.of(world.space.merged(whole).numpy(), index.packed.levels)).top_k(world.probe(9, 1), 20)
    assert torch.equal(same_levels.index_TK, direct.index_TK)


def test_what_follows_a_late_behaviour_is_packed_again(
    world: Catalogue, keys_on_disk: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, other = world.keys(500, 5), world.keys(1, 77)
    found(keys_on_disk, world, keys)
    late = Keys(*(torch.cat([getattr(keys, f)[:300], getattr(other, f), getattr(keys, f)[300:]]) for f in vars(keys)))
    counts = packed_rows(monkeypatch)
    with keys_on_disk.index("u", late) as index:
        assert counts[0] == 501 - 2 * 128
        fresh = PackedKeys.of(world.space.merged(late).numpy(), index.packed.levels)
        np.testing.assert_array_equal(index.packed.level_LD(), fresh.level_LD())


def test_a_request_about_the_past_sees_only_the_past(world: Catalogue, keys_on_disk: KeyStore) -> None:
    keys = world.keys(500, 6)
    found(keys_on_disk, world, keys)
    for length in (0, 5, 128, 200):
        with keys_on_disk.index("u", keys[:length]) as index:
            assert len(index) == length
            assert int(index.top_k(world.probe(3, 1), 300).index_TK.max()) < max(length, 1)
    with keys_on_disk.index("u", keys) as index:
        assert len(index) == 500


def test_a_shorter_history_that_differs_loses_the_chunks_behind_it(world: Catalogue, keys_on_disk: KeyStore) -> None:
    found(keys_on_disk, world, world.keys(500, 7))
    other = world.keys(150, 8)
    with keys_on_disk.index("u", other) as index:
        fresh = PackedKeys.of(world.space.merged(other).numpy(), index.packed.levels)
        np.testing.assert_array_equal(index.packed.level_LD(), fresh.level_LD())
    with keys_on_disk._env.begin(db=keys_on_disk._chunks) as txn:
        assert txn.stat(keys_on_disk._chunks)["entries"] == 2


def test_behaviours_beyond_the_levels_renew_them(world: Catalogue, keys_on_disk: KeyStore) -> None:
    keys = world.keys(200, 9)
    small = replace(keys, weight_LM=keys.weight_LM * 0.1)
    large = Keys(*(torch.cat([getattr(small, f), getattr(keys, f)]) for f in vars(keys)))
    found(keys_on_disk, world, small)
    top = found(keys_on_disk, world, large)
    fresh = Int8Index(PackedKeys.of(world.space.merged(large).numpy())).top_k(world.probe(9, 1), 20)
    assert torch.equal(top.index_TK, fresh.index_TK)
    assert torch.equal(found(keys_on_disk, world, large).index_TK, fresh.index_TK)


def test_users_do_not_meet(world: Catalogue, keys_on_disk: KeyStore) -> None:
    first, second = world.keys(200, 10), world.keys(200, 11)
    before = found(keys_on_disk, world, first, "a")
    found(keys_on_disk, world, second, "b")
    assert torch.equal(found(keys_on_disk, world, first, "a").index_TK, before.index_TK)


def test_keys_of_another_bundle_are_refused(world: Catalogue, keys_on_disk: KeyStore, tmp_path: Path) -> None:
    keys_on_disk.close()
    with pytest.raises(VersionMismatch, match="bundle-2"):
        KeyStore(tmp_path / "keys", world.space, "bundle-2", max_gib=0.1)


@pytest.mark.parametrize("first", [0, 1, 60])
def test_a_first_history_that_says_little_does_not_decide_the_levels(
    world: Catalogue, keys_on_disk: KeyStore, first: int
) -> None:
    keys = world.keys(1000, 14)
    found(keys_on_disk, world, keys[torch.zeros(first, dtype=torch.int64)])
    grown = torch.cat([torch.zeros(first, dtype=torch.int64), torch.arange(1, 1000)])
    for length in (first + 40, first + 300, len(grown)):
        found(keys_on_disk, world, keys[grown[:length]])
    with keys_on_disk.index("u", keys[grown]) as index:
        fresh = PackedKeys.of(world.space.merged(keys[grown]).numpy())
        assert index.packed.levels.step < 1.5 * fresh.levels.step


def test_a_write_of_another_process_in_between_is_not_mixed_with_ours(
    world: Catalogue, keys_on_disk: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = world.keys(600, 15)
    found(keys_on_disk, world, keys[:200])
    keep, others = KeyStore._keep, [True]

    def interrupted(store: KeyStore, *rest: Any) -> None:
        if others.pop() if others else False:
            # Another replica gives the user new levels, from keys three times as long.
            found(store, world, replace(keys[:550], weight_LM=keys.weight_LM[:550] * 3))
        keep(store, *rest)

    monkeypatch.setattr(KeyStore, "_keep", interrupted)
    found(keys_on_disk, world, keys[:400])
    with keys_on_disk._env.begin() as txn:
        record = np.frombuffer(txn.get(_user("u"), db=keys_on_disk._users), np.float32)
    levels = Levels(record[2:].copy(), record[1])
    with keys_on_disk.index("u", replace(keys[:550], weight_LM=keys.weight_LM[:550] * 3)) as index:
        expected = PackedKeys.of(3 * world.space.merged(keys[:550]).numpy(), levels).level_LD()
        np.testing.assert_array_equal(index.packed.level_LD(), expected)


def test_a_full_store_goes_on_without_keeping(world: Catalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = KeyStore(tmp_path / "small", world.space, "bundle-1", max_gib=0.0002)
    for user in range(40):
        keys = world.keys(500, user)
        fresh = Int8Index(PackedKeys.of(world.space.merged(keys).numpy())).top_k(world.probe(9, 1), 20)
        assert torch.equal(found(small, world, keys, str(user)).index_TK, fresh.index_TK)
    assert [record.message for record in caplog.records if "no room left" in record.message] != []
    assert len(caplog.records) == 1, "said once"
    small.close()


def _user(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _search_elsewhere(folder: Path, done: "multiprocessing.Queue[list[list[int]]]") -> None:
    world = shared_catalogue()
    stored = KeyStore(folder, world.space, "bundle-1", max_gib=0.1)
    key_store.CHUNK = 128

    def refuse(*_: Any) -> int:
        raise AssertionError("packed again")

    int8.pack = refuse
    done.put(found(stored, world, world.keys(300, 12)).index_TK.tolist())


def test_another_process_reads_what_this_one_packed(world: Catalogue, keys_on_disk: KeyStore, tmp_path: Path) -> None:
    expected = found(keys_on_disk, world, world.keys(300, 12)).index_TK.tolist()
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    other = context.Process(target=_search_elsewhere, args=(tmp_path / "keys", done))
    other.start()
    assert done.get(timeout=60) == expected
    other.join()
