"""The service over a history server that goes away: 503 and when to ask again, then all as before, nothing lost or doubled."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.redis_server import RedisServer
from seminar.artifacts import Artifact, Store
from tests.served_world import Service, World, open_service
from tests.stores import needs_server

pytestmark = needs_server
LATER_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


def append(service: Service, number: int) -> dict[str, int]:
    body = {"user_id": "u01", "events": [{"item_id": "i01", "time_ms": LATER_MS + number, "event_id": f"e{number}"}]}
    answer = service.client.post("/v1/events", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_history_server_that_goes_away_means_503_until_it_is_back(world: World, server: RedisServer, tmp_path: Path) -> None:
    request = {"user_id": "u01", "targets": [{"item_id": "i01"}, {"item_id": "i02"}], "time_ms": LATER_MS + 10}
    with open_service(world, None, history_url=server.url) as service:
        length = append(service, 0)["history_length"]
        before = service.score(**request)
        assert before["history_length"] == length > 1
        server.kill()
        events = {"user_id": "u01", "events": [{"item_id": "i02", "time_ms": LATER_MS + 1, "event_id": "e1"}]}
        for route, body in (("score", {**request, "user_id": "u02"}), ("events", events), ("recommend", {"user_id": "u03"})):
            answer = service.client.post(f"/v1/{route}", json=body)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), answer.text
            (problem,) = answer.json()["errors"]
            assert problem["expected"] == "a server that answers"
        assert service.client.get("/v1/users/u01/history").status_code == 503
        # Its replica stays: starting it again would cost its caches and bring no server back.
        service.engine.require_bundle()
        assert service.client.get("/v1/health/live").status_code == 200
        server.start()
        assert service.score(**request)["scores"] == before["scores"]
        assert [append(service, number)["duplicates"] for number in (0, 1, 1)] == [1, 0, 1]
        assert append(service, 2)["history_length"] == length + 2


def test_two_nodes_over_one_server_see_each_others_events(world: World, server: RedisServer) -> None:
    with open_service(world, None, history_url=server.url) as one, open_service(world, None, history_url=server.url) as other:
        new = {
            "user_id": "fresh",
            "events": [{"item_id": "never seen", "time_ms": LATER_MS}, {"item_id": "i02", "time_ms": LATER_MS}],
        }
        assert one.client.post("/v1/events", json=new).json()["unknown_items"] == 1
        history = other.client.get("/v1/users/fresh/history").json()
        assert [(b["item_id"], b["in_bundle"]) for b in history["behaviours"]] == [("never seen", False), ("i02", True)]
        assert one.client.get("/v1/bundle").json()["users"] == other.client.get("/v1/bundle").json()["users"] > 20
