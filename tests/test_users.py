"""The per-replica cache of users: bounded, and never older than the store."""

from pathlib import Path

import numpy as np
import pytest

from seminar.artifacts import Artifact, Store
from seminar.history.store import Event
from serve.users import UserCache
from tests.served_world import World, offline, open_service

LATER_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def world(tiny_pairs: Artifact, tiny_store: Store) -> World:
    return World.of(tiny_store, tiny_pairs)


def test_least_recently_used_go_when_bytes_pass_the_limit() -> None:
    cache: UserCache[int] = UserCache(10)
    for number, user in enumerate("abc"):
        cache.put("v", user, b"1", number, 4)
        cache.get("v", "a", b"1")
    assert [cache.get("v", user, b"1") for user in "abc"] == [0, None, 2]
    assert (len(cache), cache.size_bytes, cache.evictions) == (2, 8, 1)
    cache.put("v", "a", b"2", 7, 11)
    assert (len(cache), cache.size_bytes) == (1, 4), (
        "what is larger than the limit is not kept, and what was there is out of date"
    )


def test_other_versions_and_bundles_are_misses() -> None:
    cache: UserCache[int] = UserCache(100)
    cache.put("v", "a", b"1", 5, 4)
    assert cache.get("v", "a", b"2") is None
    assert cache.get("w", "a", b"1") is None
    assert cache.get("v", "a", b"1") == 5
    assert (cache.hits, cache.misses) == (1, 2)
    cache.put("v", "a", b"2", 6, 7)
    assert (cache.get("v", "a", b"2"), cache.size_bytes) == (6, 7)


def test_appends_by_any_replica_late_ones_too_are_seen_at_once(world: World, tmp_path: Path) -> None:
    request = {"user_id": "u08", "targets": [{"item_id": f"i{n:02d}"} for n in range(8)], "time_ms": LATER_MS}
    with open_service(world, tmp_path / "a") as cached, open_service(world, tmp_path / "b", user_cache_mib=0) as fresh:
        scores = []
        for age_ms in (5000, 400_000_000_000, 1, None):
            scores.append(cached.score(**request)["scores"])
            assert cached.score(**request)["scores"] == scores[-1]
            np.testing.assert_allclose(scores[-1], fresh.score(**request)["scores"], rtol=0, atol=1e-5)
            if age_ms is not None:
                # Straight into the store, as another replica of the node would.
                for service in (cached, fresh):
                    service.engine.store.append("u08", [Event("i05", LATER_MS - age_ms)])
        assert len({tuple(score) for score in scores}) == len(scores)
        assert (cached.engine.user_cache.hits, cached.engine.user_cache.misses) == (4, 4)
        assert len(fresh.engine.user_cache) == 0


def test_moments_of_the_past_and_other_bundles_get_their_own_history(world: World, tmp_path: Path) -> None:
    histories, row = world.user("u17")
    times = histories.time_ms[histories.span(row)]
    half, items = int(times[len(times) // 2]), [f"i{n:02d}" for n in range(8)]
    with open_service(world, tmp_path / "h") as service:
        request = {"user_id": "u17", "targets": [{"item_id": item} for item in items]}
        for bundle in (*world.bundles, world.bundles[0]):
            assert service.offer(bundle.version) or bundle is world.bundles[0]
            for _ in range(2):
                now = service.score(**request, time_ms=LATER_MS)
                past = service.score(**request, time_ms=half)
                assert (now["bundle_version"], past["history_used"]) == (bundle.version, (times <= half).sum())
                expected = offline(world, bundle, "u17", items, None, LATER_MS)
                np.testing.assert_allclose(now["scores"], expected, rtol=0, atol=1e-5)
        assert service.engine.user_cache.misses == 2, "after a rollback the first bundle's entries are still there"
        assert service.engine.user_cache.size_bytes > 0
