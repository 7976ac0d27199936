"""POST /v1/explain and what leads to it: the explanation is that of the score, of one bundle, with any retriever and top K."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from seminar.artifacts import Artifact, Store
from seminar.bundle import Bundle
from tests.served_world import Service, World, open_service

LATER_MS = 1_700_000_000_000


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def service(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(world, tmp_path_factory.mktemp("explain")) as opened:
        yield opened


def explain(service: Service, item: str = "i07", **more: Any) -> dict[str, Any]:
    body = {"user_id": "u17", "target": {"item_id": item, "query_id": "q-tea"}, "time_ms": LATER_MS, **more}
    answer = service.client.post("/v1/explain", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("retriever", [None, "exact", "merged", "int8", "pq"])
def test_explanation_is_that_of_the_score(service: Service, retriever: str | None) -> None:
    told = explain(service, retriever=retriever)
    targets = [{"item_id": "i07", "query_id": "q-tea"}]
    scored = service.score(user_id="u17", targets=targets, time_ms=LATER_MS, explain=True)
    if retriever != "pq":
        assert told["score"] == pytest.approx(scored["scores"][0], abs=1e-5)
        (same,) = scored["explanation"]
        assert [b["item_id"] for b in told["kept"]] == [b["item_id"] for b in same["behaviours"]]
        assert told["gate"] == pytest.approx(same["gate"])
        assert told["recall"] == 1.0
    assert told["retriever"] == (retriever or scored["retriever"])
    assert told["bundle_version"] == scored["bundle_version"]
    for kept in told["kept"]:
        assert len(kept["attention_H"]) == told["heads"] == 4
        assert sum(kept["channels"].values()) == pytest.approx(kept["relevance"], abs=1e-4)
        place = kept["position"] - told["history"]["position"][0]
        for name in ("item_id", "text", "category", "query_id", "query", "time_ms"):
            assert kept[name] == told["history"][name][place]
        assert kept["relevance"] == pytest.approx(told["history"]["relevance"][place], abs=1e-4)
    assert np.allclose(np.sum([kept["attention_H"] for kept in told["kept"]], axis=0), 1, atol=1e-5)


def test_recall_and_next_best_are_those_of_the_relevance_column(service: Service) -> None:
    for top_k in (1, 3, 8, 1000):
        told = explain(service, top_k=top_k, retriever="exact")
        relevance = told["history"]["relevance"]
        assert told["top_k"] == top_k
        assert len(told["kept"]) == min(top_k, len(relevance))
        best = sorted(relevance, reverse=True)
        assert [kept["relevance"] for kept in told["kept"]] == pytest.approx(best[:top_k], abs=1e-4)
        assert told["recall"] == 1.0
        assert told["next_best"] == (pytest.approx(best[top_k], abs=1e-4) if top_k < len(best) else None)


def test_newest_limits_the_columns_and_nothing_else(service: Service) -> None:
    whole, part, none = (explain(service, newest=n) for n in (2000, 3, 0))
    assert whole["history_used"] == len(whole["history"]["position"]) > 3
    assert part["history"]["position"] == whole["history"]["position"][-3:]
    assert part["history"]["relevance"] == whole["history"]["relevance"][-3:]
    assert none["history"]["item_id"] == []
    assert whole["kept"] == part["kept"] == none["kept"]
    assert set(map(len, whole["history"].values())) == {whole["history_used"]}


def test_two_bundles_are_explained_side_by_side_and_never_mixed(world: World, service: Service) -> None:
    first, second = world.bundles
    mine = explain(service)
    other = explain(service, bundle=second.version)
    assert (mine["bundle_version"], other["bundle_version"]) == (first.version, second.version)
    assert mine["score"] != other["score"]
    assert explain(service, bundle=first.version)["score"] == mine["score"]
    assert service.offer(second.version)
    try:
        assert explain(service)["score"] == pytest.approx(other["score"], abs=1e-6)
        back = explain(service, bundle=first.version)
        assert (back["bundle_version"], back["score"]) == (first.version, pytest.approx(mine["score"], abs=1e-6))
    finally:
        assert service.offer(first.version)


def test_user_without_a_history_is_explained_by_nothing(service: Service) -> None:
    told = explain(service, user_id="nobody")
    assert (told["known_user"], told["kept"], told["recall"], told["next_best"]) == (False, [], None, None)
    assert told["history"]["relevance"] == []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"bundle": "v-unknown"}, "bundle"),
        ({"bundle": ".."}, "bundle"),
        ({"bundle": "a/b"}, "bundle"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1001}, "top_k"),
        ({"retriever": "hnsw"}, "retriever"),
        ({"newest": -1}, "newest"),
        ({"target": {"item_id": "nothing"}}, "target.item_id"),
        ({"target": {"item_id": "i01", "query_id": "nothing"}}, "target.query_id"),
        ({"targets": []}, "targets"),
    ],
)
def test_bad_explain_request_is_told_its_field(service: Service, changed: dict[str, Any], what: str) -> None:
    body = {"user_id": "u17", "target": {"item_id": "i01"}, **changed}
    answer = service.client.post("/v1/explain", json=body)
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["errors"]
    assert problem["what"] == what
    assert all(problem.values())


def test_users_are_listed_by_prefix(world: World, service: Service) -> None:
    told = service.client.get("/v1/users?prefix=u1&limit=4").json()
    assert [user["user_id"] for user in told["users"]] == ["u10", "u11", "u12", "u13"]
    assert told["total"] == sum(map(len, world.shards))
    for user in told["users"]:
        page = service.client.get(f"/v1/users/{user['user_id']}/history?limit=1").json()
        assert (user["length"], user["newest_ms"]) == (page["length"], page["behaviours"][0]["time_ms"])
    assert service.client.get("/v1/users?prefix=u29").json()["users"] == [{"user_id": "u29", "length": 0, "newest_ms": None}]
    assert service.client.get("/v1/users?prefix=zzz").json()["users"] == []
    assert service.client.get("/v1/users?limit=0").status_code == 422


def test_items_are_found_by_words_and_by_id(world: World, service: Service) -> None:
    def found(text: str, limit: int = 100) -> list[str]:
        told = service.client.get("/v1/items", params={"text": text, "limit": limit}).json()
        assert told["bundle_version"] == world.bundles[0].version
        return [item["item_id"] for item in told["items"]]

    assert set(found("NUMBER tea")) == {f"i{n:02d}" for n in range(0, 60, 5) if n % 10 != 3}
    assert found("i-untouched") == ["i-untouched"]
    assert found("never") == ["i-untouched"]
    assert found("no such words") == []
    counts = Bundle.load(world.bundles[0].path)
    taken = dict(zip(counts.item_ids, counts.ranker.heads.train_count.tolist(), strict=False))
    assert [taken[item] for item in found("", 5)] == sorted(taken.values(), reverse=True)[:5]
    (item,) = service.client.get("/v1/items?text=never").json()["items"]
    assert item == {"item_id": "i-untouched", "text": "never bought", "category": "tea"}


def test_queries_are_found_by_words(service: Service) -> None:
    told = service.client.get("/v1/queries?text=EA").json()["queries"]
    assert {query["query_id"] for query in told} == {"q-tea", "q-bread"}
    assert len(service.client.get("/v1/queries").json()["queries"]) == 5


def test_bundles_are_listed_newest_first_with_the_one_in_use(world: World, service: Service) -> None:
    told = service.client.get("/v1/bundles").json()
    assert told["current"] == world.store.current("bundle")
    assert {bundle["version"] for bundle in told["bundles"]} == set(world.store.versions("bundle"))
    assert [b["version"] for b in told["bundles"] if b["in_use"]] == [world.bundles[0].version]
