"""The gRPC interface: scores as HTTP gives them, refusals with the same words, the same token; through Ray Serve's own proxy."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from grpc import StatusCode
from ray import serve

from seminar.artifacts import Artifact, Store
from seminar.client.errors import ServiceError, Unreachable
from seminar.client.retries import Patience
from seminar.client.rpc import RPCClient
from seminar.client.scoring_pb2 import ScoreRequest, Task
from seminar.config import ServeConfig, Settings
from seminar.errors import ConfigError
from serve import rpc
from serve.access import VARIABLE
from serve.deploy import Serve, config_of
from serve.observe import Answered, Record, Silent, remember
from serve.run import REPOSITORY
from serve.stages import LocalStages
from tests.served_world import Service, World, offline, open_service

LATER_MS = 1_700_000_000_000
ITEMS = [f"i{n:02d}" for n in range(0, 60, 4)]
TOKEN = "a token of 21 letters"


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


class Context:
    """What Serve hands a method of a call."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.metadata, self.code, self.details = metadata, None, ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self.metadata.items())

    def set_code(self, code: StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.fixture(scope="module")
def service(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("rpc")
    (folder / "token").write_text(TOKEN)
    with open_service(world, folder / "history", token_file=str(folder / "token"), max_targets=50) as opened:
        yield opened


def call(service: Service, token: str | None = TOKEN, **fields: Any) -> tuple[Any, Context]:
    context: Any = Context({} if token is None else {"authorization": f"Bearer {token}"})
    assert service.client.portal is not None
    return service.client.portal.call(rpc.score, service.engine, ScoreRequest(**fields), context), context


@pytest.mark.parametrize("asked", [{}, {"query_id": "q-tea"}, {"query": "green leaves"}])
def test_scores_are_those_of_http(service: Service, asked: dict[str, str]) -> None:
    told, context = call(service, user_id="u17", item_ids=ITEMS, time_ms=LATER_MS, **asked)
    assert context.code is None
    body = {"user_id": "u17", "targets": [{"item_id": item, **asked} for item in ITEMS], "time_ms": LATER_MS}
    http = service.client.post("/v1/score", json=body, headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert np.allclose(told.scores, http["scores"], atol=1e-6)
    assert told.task == (Task.PSR if asked else Task.CTR)
    for name in ("bundle_version", "known_user", "time_ms", "history_length", "history_used", "retriever"):
        assert getattr(told, name) == http[name]


@pytest.mark.parametrize(
    ("changed", "code", "what"),
    [
        ({"token": None}, StatusCode.UNAUTHENTICATED, "authorization"),
        ({"token": "another token of letters"}, StatusCode.UNAUTHENTICATED, "authorization"),
        ({"item_ids": []}, StatusCode.INVALID_ARGUMENT, "targets"),
        ({"item_ids": ["nothing"]}, StatusCode.INVALID_ARGUMENT, "targets[0].item_id"),
        ({"item_ids": ["x" * 600] * 40}, StatusCode.INVALID_ARGUMENT, "targets[0].item_id"),
        ({"item_ids": ["i01"] * 51}, StatusCode.INVALID_ARGUMENT, "targets"),
        ({"user_id": ""}, StatusCode.INVALID_ARGUMENT, "user_id"),
        ({"time_ms": 5}, StatusCode.INVALID_ARGUMENT, "time_ms"),
        ({"query": "  "}, StatusCode.INVALID_ARGUMENT, "targets[0].query"),
        ({"query_id": "nothing"}, StatusCode.INVALID_ARGUMENT, "targets[0].query_id"),
    ],
)
def test_refusals_have_a_code_and_the_words_of_http(
    service: Service, changed: dict[str, Any], code: StatusCode, what: str
) -> None:
    told, context = call(service, **{"user_id": "u17", "item_ids": ["i01"], **changed})
    assert (list(told.scores), context.code) == ([], code)
    problem = json.loads(context.details)["errors"][0]
    assert problem["what"] == what
    assert all(problem.values())
    assert len(context.details) <= rpc.MAX_DETAILS


def test_calls_are_counted_and_logged_as_http_requests_are(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[Record] = []

    class Noting(Silent):
        def ended(self, record: Record) -> None:
            records.append(record)

        def answered(self, answered: Answered) -> None:
            remember(answered)

    monkeypatch.setattr(service.engine, "observer", Noting())
    call(service, user_id="u17", item_ids=ITEMS, time_ms=LATER_MS)
    call(service, user_id="u17", item_ids=["nothing"])
    call(service, token=None, user_id="u17", item_ids=ITEMS)
    monkeypatch.setattr(service.engine, "score", None)
    call(service, user_id="u17", item_ids=ITEMS)
    assert [record.status for record in records] == [200, 422, 401, 500]
    assert {record.route for record in records} == {rpc.ROUTE}
    assert [record.targets for record in records] == [len(ITEMS), 0, 0, 0]
    assert [type(record.error) for record in records] == [type(None)] * 3 + [TypeError]
    assert records[0].user_id == "u17"
    assert records[0].total_ms > 0


def test_bug_is_internal_and_tells_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(LocalStages, "here", False)
    monkeypatch.setattr(service.engine.stages, "score", fail)
    _, context = call(service, user_id="u17", item_ids=["i01"])
    assert context.code == StatusCode.INTERNAL
    assert "secret" not in context.details
    quiet = TestClient(service.client.app, raise_server_exceptions=False)
    assert quiet.get("/v1/health/live").status_code == 200


def test_grpc_listens_on_all_interfaces_and_so_needs_a_token_or_to_be_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    def config(**more: Any) -> dict[str, Any]:
        settings = Settings(workdir=world.store.root, serve=ServeConfig(grpc_port=9123, **more))
        return config_of(settings, world.bundles[0].version)

    with pytest.raises(ConfigError, match="grpc_port"):
        config()
    (tmp_path / "token").write_text(TOKEN)
    for guarded in (config(insecure=True), config(token_file=tmp_path / "token")):
        assert guarded["grpc_options"] == {"port": 9123, "grpc_servicer_functions": [rpc.SERVICER]}


@pytest.fixture(scope="module")
def address(ray_session: None, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An application with a token behind Serve's own proxies."""
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "token").write_text(TOKEN)
    with socket.socket() as http, socket.socket() as grpc:
        http.bind(("127.0.0.1", 0))
        grpc.bind(("127.0.0.1", 0))
        port, grpc_port = http.getsockname()[1], grpc.getsockname()[1]
    serving = ServeConfig(
        port=port,
        grpc_port=grpc_port,
        history=folder / "history",
        max_history_gib=0.1,
        overfetch=64,
        recommend=False,
        token_file=folder / "token",
    )
    config = config_of(Settings(workdir=world.store.root, serve=serving), world.bundles[0].version)
    (application,) = config["applications"]
    for deployment in application["deployments"]:
        deployment.pop("autoscaling_config", None)
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    application["runtime_env"] = {"working_dir": f"local://{REPOSITORY}"}
    serve.start(proxy_location="HeadOnly", http_options=config["http_options"], grpc_options=config["grpc_options"])
    service = Serve(None)
    service.apply(config)
    service.wait_running(["seminar"])
    yield f"127.0.0.1:{grpc_port}"
    serve.shutdown()


def test_client_is_answered_through_serve_with_the_offline_scores(address: str, world: World) -> None:
    with RPCClient(address, TOKEN) as client:
        for user in ("u08", "u17"):
            told = client.score(user, ITEMS, time_ms=LATER_MS)
            assert np.allclose(told.scores, offline(world, world.bundles[0], user, ITEMS, None, LATER_MS), atol=1e-5)
        told = client.score("u08", ITEMS, query_id="q-tea", time_ms=LATER_MS)
        assert told.task == Task.PSR
        assert np.allclose(told.scores, offline(world, world.bundles[0], "u08", ITEMS, "q-tea", LATER_MS), atol=1e-5)
        with pytest.raises(ServiceError) as refused:
            client.score("u08", ["nothing"])
        assert (refused.value.status, refused.value.problems[0].what) == (422, "targets[0].item_id")
    with RPCClient(address, None) as stranger, pytest.raises(ServiceError) as refused:
        stranger.score("u08", ITEMS)
    assert refused.value.status == 401


def test_client_says_where_nobody_answers() -> None:
    soon = Patience(deadline_s=0.5, first_wait_s=0.01)
    with RPCClient("127.0.0.1:9", patience=soon) as client, pytest.raises(Unreachable, match="UNAVAILABLE") as unreachable:
        client.score("u08", ITEMS)
    assert unreachable.value.attempts > 1
