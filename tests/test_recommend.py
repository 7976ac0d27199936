"""POST /v1/recommend: candidates of the bundle in use, scored as /v1/score scores them, with where they come from and why."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seminar.artifacts import Artifact, Store
from seminar.bundle import PROPOSER, Bundle
from seminar.candidates.proposer import Past, Proposer
from seminar.schema import NONE
from tests.conftest import NUM_ITEMS, START_MS
from tests.served_world import Service, World, open_service

LATER_MS = 1_700_000_000_000
EVERYTHING = 200
"""More candidates than the catalogue has items."""


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def service(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(world, tmp_path_factory.mktemp("recommend"), max_targets=300) as opened:
        yield opened


def refused(service: Service, **request: Any) -> tuple[int, dict[str, str]]:
    answer = service.client.post("/v1/recommend", json=request)
    return answer.status_code, answer.json()["errors"][0]


def taken(world: World, user: str) -> list[tuple[str, int, int]]:
    """(item id, catalogue row of its query, time) of each behaviour of a user, in order."""
    histories, row = world.user(user)
    span, ids = histories.span(row), Bundle.load(world.bundles[0].path).item_ids
    behaviours = zip(histories.item[span], histories.query[span], histories.time_ms[span], strict=True)
    return [(ids[item], int(query), int(time_ms)) for item, query, time_ms in behaviours]


@pytest.mark.parametrize(("user", "query"), [("u08", {}), ("u17", {"query_id": "q-tea"}), ("u17", {"query": "green leaves"})])
def test_items_are_scored_as_the_score_route_scores_them(service: Service, user: str, query: dict[str, str]) -> None:
    told = service.recommend(user_id=user, n=20, time_ms=LATER_MS, **query)
    targets = [{"item_id": item["item_id"], **query} for item in told["items"]]
    scored = service.score(user_id=user, targets=targets, time_ms=LATER_MS)
    assert np.allclose([item["score"] for item in told["items"]], scored["scores"], atol=1e-6)
    for name in ("bundle_version", "known_user", "task", "time_ms", "history_length", "history_used"):
        assert told[name] == scored[name]
    assert told["task"] == ("psr" if query else "ctr")
    assert service.recommend(user_id=user, task="ctr", **query)["task"] == "ctr"
    assert min(told["timings_ms"][part] for part in ("history", "propose", "retrieve", "rank")) > 0


def test_the_best_of_all_candidates_come_best_first(service: Service) -> None:
    every = service.recommend(user_id="u08", n=NUM_ITEMS + 1, time_ms=LATER_MS)["items"]
    scores = [item["score"] for item in every]
    assert scores == sorted(scores, reverse=True)
    assert len({item["item_id"] for item in every}) == len(every) == NUM_ITEMS + 1
    assert service.recommend(user_id="u08", n=7, time_ms=LATER_MS)["items"] == every[:7]


def test_candidates_are_the_proposers(world: World, service: Service) -> None:
    bundle = Bundle.load(world.bundles[0].path)
    histories, row = world.user("u17")
    span = histories.span(row)
    past = Past(*(column[span].astype(np.int64) for column in (histories.item, histories.query, histories.request)))
    for name, query in ((None, NONE), ("q-soap", int(bundle.query_row(["q-soap"])[0]))):
        expected = Proposer.load(bundle.path / PROPOSER).propose(past, query, 12)
        told = service.recommend(user_id="u17", n=12, candidates=12, query_id=name, time_ms=LATER_MS)
        items = {item["item_id"]: item for item in told["items"]}
        assert set(items) == {bundle.item_ids[item] for item in expected.item_C.tolist()}
        for item, logit in zip(expected.item_C.tolist(), expected.score_C.tolist(), strict=True):
            assert items[bundle.item_ids[item]]["retrieval_score"] == (
                None if np.isnan(logit) else pytest.approx(logit, abs=1e-4)
            )
        assert list(told["by_source"].values()) == expected.origin_CS.sum(0).tolist()


def test_sources_say_who_took_what(world: World, service: Service) -> None:
    bundle, behaviours = Bundle.load(world.bundles[0].path), taken(world, "u08")
    own = {item for item, _, _ in behaviours}
    row = int(bundle.query_row(["q-bread"])[0])
    under = {bundle.item_ids[item] for item in Proposer.load(bundle.path / PROPOSER).query_items.of(row).tolist()}
    assert own
    assert under
    told = service.recommend(user_id="u08", n=NUM_ITEMS + 1, query="Bread", time_ms=LATER_MS)
    assert {item["item_id"] for item in told["items"] if "history" in item["sources"]} == own
    assert {item["item_id"] for item in told["items"] if "query" in item["sources"]} == under
    assert all(("retrieved" in item["sources"]) == (item["retrieval_score"] is not None) for item in told["items"])
    assert told["by_source"] == {"history": len(own), "query": len(under), "retrieved": told["candidates"]}
    assert service.recommend(user_id="u08", n=NUM_ITEMS + 1)["by_source"]["query"] == 0


def test_item_that_nobody_took_is_found(service: Service) -> None:
    told = service.recommend(user_id="u08", n=NUM_ITEMS + 1)
    (untouched,) = [item for item in told["items"] if item["item_id"] == "i-untouched"]
    assert untouched["sources"] == ["retrieved"]
    assert untouched["text"] == "never bought"


def test_query_match_is_what_training_took_under_the_query(world: World) -> None:
    """The tiny log asks for a category and takes items of it, so nothing else stands in the query's table."""
    bundle = Bundle.load(world.bundles[0].path)
    items = Proposer.load(bundle.path / PROPOSER).query_items.of(int(bundle.query_row(["q-tea"])[0]))
    assert {int(bundle.item_ids[item][1:]) % 5 for item in items.tolist()} == {0}


def test_reasons_are_behaviours_of_the_user_by_attention(world: World, service: Service) -> None:
    known = {(item, time_ms) for item, _, time_ms in taken(world, "u17")}
    told = service.recommend(user_id="u17", n=5, because=4, time_ms=LATER_MS)
    explained = service.score(
        user_id="u17",
        targets=[{"item_id": item["item_id"]} for item in told["items"]],
        explain=True,
        explain_top=5,
        time_ms=LATER_MS,
    )["explanation"]
    for item, explanation in zip(told["items"], explained, strict=True):
        attention = [reason["attention"] for reason in item["because"]]
        assert attention == sorted(attention, reverse=True)
        every = sorted((b["attention"] for b in explanation["behaviours"]), reverse=True)
        assert np.allclose(attention, every[:4], atol=1e-5)
        assert {(reason["item_id"], reason["time_ms"]) for reason in item["because"]} <= known
        assert all(set(reason) == {"item_id", "text", "query", "time_ms", "attention"} for reason in item["because"])
    assert all(item["because"] == [] for item in service.recommend(user_id="u17", because=0)["items"])
    assert len(service.recommend(user_id="u17", because=10)["items"][0]["because"]) == 5  # top_k


def test_user_without_a_history_gets_items_without_reasons(service: Service) -> None:
    for user, known in (("nobody", False), ("u29", True)):
        told = service.recommend(user_id=user, candidates=30)
        assert (told["known_user"], told["history_used"], len(told["items"])) == (known, 0, 10)
        assert told["by_source"] == {"history": 0, "query": 0, "retrieved": 30}
        assert all(item["because"] == [] for item in told["items"])


def test_next_request_sees_an_event(service: Service) -> None:
    before = service.recommend(user_id="fresh", n=NUM_ITEMS + 1, time_ms=LATER_MS)
    body = {"user_id": "fresh", "events": [{"item_id": "i42", "time_ms": LATER_MS - 5000}, {"item_id": "x", "time_ms": LATER_MS}]}
    assert service.client.post("/v1/events", json=body).status_code == 200
    after = service.recommend(user_id="fresh", n=NUM_ITEMS + 1, time_ms=LATER_MS)
    assert (after["history_length"], after["history_used"]) == (2, 1)
    assert [item["item_id"] for item in after["items"] if "history" in item["sources"]] == ["i42"]
    vectors = ({item["item_id"]: item["retrieval_score"] for item in told["items"]} for told in (before, after))
    assert next(vectors) != next(vectors)
    assert after["items"][0]["because"][0]["item_id"] == "i42"


def test_query_outside_the_catalogue_is_encoded_for_both_stages(service: Service) -> None:
    def told(**query: str) -> tuple[list[float], list[float]]:
        items = service.recommend(user_id="u08", n=NUM_ITEMS + 1, time_ms=LATER_MS, task="psr", **query)["items"]
        items.sort(key=lambda item: item["item_id"])
        return [item["score"] for item in items], [item["retrieval_score"] for item in items]

    unknown, none = told(query="green leaves in hot water"), told()
    assert unknown[0] != none[0]
    assert unknown[1] != none[1]
    assert told(query="  TEA ") == told(query_id="q-tea")
    assert told(query="<br>") == none


def test_time_hides_what_came_later(world: World, service: Service) -> None:
    behaviours = taken(world, "u08")
    half = behaviours[len(behaviours) // 2][2]
    told = service.recommend(user_id="u08", n=NUM_ITEMS + 1, time_ms=half)
    seen = {item for item, _, time_ms in behaviours if time_ms <= half}
    assert told["history_used"] == sum(time_ms <= half for _, _, time_ms in behaviours)
    assert {item["item_id"] for item in told["items"] if "history" in item["sources"]} == seen
    assert all(reason["time_ms"] <= half for item in told["items"] for reason in item["because"])
    before = service.recommend(user_id="u08", time_ms=START_MS - 1)
    nobody = service.recommend(user_id="nobody", time_ms=START_MS - 1)
    assert [item["retrieval_score"] for item in before["items"]] == [item["retrieval_score"] for item in nobody["items"]]


def test_how_many_are_ranked_and_told(world: World, service: Service, tmp_path: Path) -> None:
    def counts(**request: int) -> tuple[int, int]:
        told = service.recommend(user_id="u08", **request)
        return len(told["items"]), told["candidates"]

    assert counts() == (10, NUM_ITEMS + 1)
    assert counts(candidates=25) == (10, 25)
    assert counts(n=25, candidates=25) == (25, 25)
    assert counts(n=300) == (NUM_ITEMS + 1, NUM_ITEMS + 1)
    assert refused(service, user_id="u08", candidates=301) == (
        413,
        {"what": "candidates", "got": "301", "expected": "at most 300", "fix": "lower it, or raise serve.max_targets"},
    )
    assert refused(service, user_id="u08", n=301)[1]["what"] == "n"
    with open_service(world, tmp_path / "history", max_targets=20) as small:
        assert small.recommend(user_id="u08")["candidates"] == 20


def test_without_an_item_index_or_a_proposer_it_is_409_and_scores_go_on(world: World, tmp_path: Path) -> None:
    targets = [{"item_id": "i01"}, {"item_id": "i07"}]
    with open_service(world, tmp_path / "history") as service:
        before = service.score(user_id="u08", targets=targets, time_ms=LATER_MS)
        assert service.offer(world.plain.version)
        status, problem = refused(service, user_id="u08")
        assert (status, problem["what"]) == (409, f"bundle {world.plain.version}")
        assert "seminar build-index" in problem["fix"]
        assert not service.client.get("/v1/bundle").json()["recommends"]
        after = service.score(user_id="u08", targets=targets, time_ms=LATER_MS)
        assert (after["scores"], after["bundle_version"]) == (before["scores"], world.plain.version)
        assert service.offer(world.bundles[1].version)
        assert service.recommend(user_id="u08")["bundle_version"] == world.bundles[1].version
    with open_service(world, tmp_path / "history", recommend=False) as service:
        status, problem = refused(service, user_id="u08")
        assert (status, problem["what"], problem["got"]) == (409, "service", "no deployment Proposer")
        assert not service.client.get("/v1/bundle").json()["recommends"]
        assert service.score(user_id="u08", targets=targets, time_ms=LATER_MS)["scores"] == before["scores"]


def test_answers_during_swaps_are_of_one_bundle(world: World, tmp_path: Path) -> None:
    def facts(told: dict[str, Any]) -> list[tuple[str, float, float]]:
        return [(item["item_id"], item["score"], item["retrieval_score"]) for item in told["items"]]

    request = {"user_id": "u08", "n": 5, "candidates": 30, "time_ms": LATER_MS}
    first, second = world.bundles
    with open_service(world, tmp_path / "history") as service:
        expected = {first.version: facts(service.recommend(**request))}
        assert service.offer(second.version)
        expected[second.version] = facts(service.recommend(**request))
        assert expected[first.version] != expected[second.version]
        answers: list[dict[str, Any]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answers.append(service.recommend(**request))

        asking = threading.Thread(target=ask)
        asking.start()
        swapped = [service.offer(bundle.version) for bundle in (first, second, first, second)]
        stop.set()
        asking.join()
        assert all(swapped)
    assert {told["bundle_version"] for told in answers} == set(expected)
    assert all(facts(told) == expected[told["bundle_version"]] for told in answers)


MALFORMED = [
    ({"user_id": None}, "user_id", "quote it"),
    ({"user_id": 7}, "user_id", "quote it"),
    ({"user_id": ""}, "user_id", ""),
    ({"n": 0}, "n", "raise it"),
    ({"n": 1001}, "n", "lower it"),
    ({"n": 2.5}, "n", "whole number"),
    ({"n": "5"}, "n", "whole number"),
    ({"candidates": 9}, "candidates", "raise it"),
    ({"n": 20, "candidates": 19}, "candidates", "raise it"),
    ({"candidates": -1}, "candidates", "raise it"),
    ({"candidates": 10**400}, "candidates", ""),
    ({"because": 11}, "because", "lower it"),
    ({"because": -1}, "because", "raise it"),
    ({"because": True}, "because", "whole number"),
    ({"task": "cvr"}, "task", ""),
    ({"time_ms": 1_700_000_000}, "time_ms", "milliseconds"),
    ({"query": "  "}, "query", ""),
    ({"query": 7}, "query", "quote it"),
    ({"query": "tea", "query_id": "q-tea"}, "body", "one of them"),
    ({"query_id": "q-none"}, "query_id", "as `query`"),
    ({"targets": []}, "targets", "remove it"),
    ({"canditates": 20}, "canditates", "did you mean 'candidates'"),
]


@pytest.mark.parametrize(("changed", "what", "fix"), MALFORMED)
def test_malformed_request_is_told_what_got_expected_fix(service: Service, changed: dict[str, Any], what: str, fix: str) -> None:
    status, problem = refused(service, **{"user_id": "u08", **changed})
    assert status == 422
    assert set(problem) == {"what", "got", "expected", "fix"}
    assert all(problem.values())
    assert problem["what"] == what
    assert fix in problem["fix"]


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"user_id": "u08", "n": NaN}', b'{"user_id": "u08", ', b'{"n": 3}'])
def test_what_is_no_json_of_ours_is_refused(service: Service, content: bytes) -> None:
    answer = service.client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text


def test_too_few_candidates_are_told_with_the_number(service: Service) -> None:
    assert refused(service, user_id="u08", n=20, candidates=19)[1]["expected"] == "at least n, 20"
