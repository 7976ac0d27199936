"""Requests that are answered in the event loop itself: the same answers, and only where nothing has to be waited for."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seminar.artifacts import Artifact, Store
from seminar.client import api
from seminar.history.store import Event
from serve import at_hand as rule
from serve.at_hand import at_hand
from serve.stages import LocalStages
from tests.served_world import World, open_service

LATER_MS = 1_700_000_000_000
REQUEST: dict[str, Any] = {"user_id": "u08", "targets": [{"item_id": f"i{n:02d}"} for n in range(8)], "time_ms": LATER_MS}


@pytest.fixture(scope="module")
def world(tiny_pairs: Artifact, tiny_store: Store) -> World:
    return World.of(tiny_store, tiny_pairs)


def test_a_warm_request_is_scored_in_the_loop_and_gets_the_scores_of_the_threads(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    plain = LocalStages._score

    def noted(self: LocalStages, *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return plain(self, *args)

    monkeypatch.setattr(LocalStages, "_score", noted)
    with open_service(world, tmp_path / "history") as service:
        cold, warm = service.score(**REQUEST), service.score(**REQUEST)
        service.engine.store.append("u08", [Event("i05", LATER_MS - 1)])
        changed = service.score(**REQUEST)
    assert ["score" in name for name in threads] == [True, False, True]
    np.testing.assert_allclose(warm["scores"], cold["scores"], rtol=0, atol=1e-6)
    assert changed["scores"] != warm["scores"]
    assert changed["history_length"] == warm["history_length"] + 1


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "u09"},
        {"user_id": "nobody"},
        {"explain": True},
        {"time_ms": LATER_MS - 2_000_000_000_00},
        {"targets": [{"item": {"text": "tea"}}]},
        {"targets": [{"item_id": "i01", "query": "words that no query has"}]},
    ],
    ids=["cold user", "unknown user", "reasons", "the past", "cold item", "new query"],
)
def test_what_has_to_be_read_or_encoded_is_left_to_the_threads(world: World, tmp_path: Path, change: dict[str, Any]) -> None:
    with open_service(world, tmp_path / "history") as service:
        service.score(**REQUEST)
        live, store = service.engine.live, service.engine.store
        assert at_hand(live, store, api.ScoreRequest.model_validate(REQUEST))
        assert not at_hand(live, store, api.ScoreRequest.model_validate({**REQUEST, **change}))


def test_what_takes_long_is_left_to_the_threads(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_service(world, tmp_path / "history") as service:
        service.score(**REQUEST)
        request = api.ScoreRequest.model_validate(REQUEST)
        found = at_hand(service.engine.live, service.engine.store, request)
        assert found is not None
        history = found[0].history
        assert history.ready is not None
        pairs = len(history.ready.pairs) + rule._spread(service.engine.live, history)
        monkeypatch.setattr(rule, "MOST", 8 * (pairs + rule.A_TARGET))
        assert at_hand(service.engine.live, service.engine.store, request)
        monkeypatch.setattr(rule, "MOST", 8 * (pairs + rule.A_TARGET) - 1)
        assert not at_hand(service.engine.live, service.engine.store, request)


def test_a_clock_behind_the_newest_behaviour_is_left_to_the_threads(world: World, tmp_path: Path) -> None:
    with open_service(world, tmp_path / "history") as service:
        service.engine.store.append("u08", [Event("i05", 4_000_000_000_000)])
        now = {name: value for name, value in REQUEST.items() if name != "time_ms"}
        service.score(**now)
        assert not at_hand(service.engine.live, service.engine.store, api.ScoreRequest.model_validate(now))


def test_others_get_their_turn_between_two_requests_of_a_batch(world: World, tmp_path: Path) -> None:
    with open_service(world, tmp_path / "history") as service:
        service.score(**REQUEST)

        async def beats() -> int:
            count, done = 0, asyncio.Event()

            async def heart() -> None:
                nonlocal count
                while not done.is_set():
                    count += 1
                    await asyncio.sleep(0)

            beating = asyncio.create_task(heart())
            batch = api.BatchRequest(requests=[api.ScoreRequest.model_validate(REQUEST)] * 40)
            answer = await service.engine.score_batch(batch)
            done.set()
            await beating
            assert [result.status for result in answer.results] == [200] * 40
            return count

        assert asyncio.run(beats()) >= 20
