"""The interface as a client meets it: documentation whose examples work, health, the bearer token, limits of a body."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from seminar.artifacts import Artifact, Store
from seminar.client import api
from seminar.config import ServeConfig, Settings
from seminar.errors import ConfigError
from serve.access import VARIABLE, read_token, require_guarded
from serve.bodies import MAX_BODY_BYTES, MAX_DEPTH, parsed
from serve.deploy import config_of
from serve.problems import Refused
from serve.stages import LocalStages
from tests.served_world import Service, World, open_service

TOKEN = "a token of 21 letters"
JSON = {"content-type": "application/json"}
POSTS = ("/v1/score", "/v1/score:batch", "/v1/recommend", "/v1/events", "/v1/explain")
GETS = ("/v1/users", "/v1/items", "/v1/queries", "/v1/bundles", "/v1/bundle", "/v1/users/{user_id}/history")
INFERENCE = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/seminar", "/v2/models/seminar/ready")
OPEN = ("/v1/health/live", "/v1/health/ready", *INFERENCE)


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def service(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(world, tmp_path_factory.mktemp("api")) as opened:
        yield opened


@pytest.fixture(scope="module")
def guarded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    with open_service(world, folder / "history", token_file=str(folder / "token")) as opened:
        yield opened


def schema_of(document: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    return document["components"]["schemas"][content["application/json"]["schema"]["$ref"].rpartition("/")[2]]


def test_openapi_names_every_route_and_each_error(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    assert set(document["paths"]) == {*POSTS, *GETS, *OPEN}
    for path in POSTS:
        post = document["paths"][path]["post"]
        assert {"200", "401", "413", "415", "422", "503"} <= set(post["responses"])
        assert ("409" in post["responses"]) == (path in ("/v1/recommend", "/v1/score", "/v1/score:batch", "/v1/explain"))
        assert post["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
        assert post["security"]
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
    assert service.client.get("/docs").status_code == 200


def test_every_example_request_of_the_documentation_is_answered(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a catalogue that has the items of the examples."""
    for row, item in enumerate(("1082185", "995242")):
        monkeypatch.setitem(service.engine.live.bundle._item_rows, item, row)
    document = service.client.get("/openapi.json").json()
    sent = 0
    for path in POSTS:
        examples = schema_of(document, document["paths"][path]["post"]["requestBody"]["content"])["examples"]
        for example in examples:
            answer = service.client.post(path, json=example)
            assert answer.status_code == 200, (path, answer.text)
            sent += 1
    assert sent >= len(POSTS)
    for path in (*GETS, *OPEN):
        answer = service.client.get(path.replace("{user_id}", "u08"))
        assert answer.status_code == 200, (path, answer.text)


def test_every_answer_of_the_documentation_has_an_example_of_its_model(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods.values():
            for status, told in method["responses"].items():
                schema = schema_of(document, told["content"])
                model = getattr(api, schema["title"])
                assert issubclass(model, BaseModel)
                # FastAPI leaves nulls out of the document's examples, so those of the model itself are looked at.
                examples = model.model_json_schema().get("examples", [{}])
                assert len(schema.get("examples", [{}])) == len(examples)
                for example in examples:
                    assert model.model_validate(example), (path, status)


def test_open_inference_protocol_knows_the_model(world: World, service: Service) -> None:
    assert service.client.get("/v2").json() == {"name": "seminar", "version": "1", "extensions": []}
    assert service.client.get("/v2/health/live").json() == {"live": True}
    assert service.client.get("/v2/health/ready").json() == {"ready": True}
    told = service.client.get("/v2/models/seminar").json()
    assert (told["name"], told["versions"]) == ("seminar", [world.bundles[0].version])
    assert service.client.get("/v2/models/seminar/ready").json() == {"name": "seminar", "ready": True}
    assert service.client.get("/v2/models/other").status_code == 404


def test_open_inference_protocol_is_not_ready_without_a_bundle(world: World, tmp_path: Path) -> None:
    opening = open_service(world, tmp_path / "history")
    with opening.client as client:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/seminar", "/v2/models/seminar/ready"):
            assert client.get(path).status_code == 503
    opening.engine.store.close()


def test_without_the_token_only_health_and_documentation_answer(guarded: Service) -> None:
    for path in (*OPEN, "/docs", "/openapi.json"):
        assert guarded.client.get(path).status_code == 200
    wrong = [{}, {"authorization": "Bearer"}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": f"Basic {TOKEN}"}]
    wrong += [{"authorization": TOKEN}, {"authorization": "Bearer \u00e4".encode("latin-1").decode("latin-1")}]
    for path in (*GETS, "/v1/nothing", "/nothing", "/v1//health/live", "/v1/health/live/../../bundle"):
        for headers in wrong:
            answer = guarded.client.get(path, headers={k: v.encode("latin-1") for k, v in headers.items()})
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            (problem,) = answer.json()["errors"]
            assert all(problem.values())
            assert TOKEN not in answer.text
    assert guarded.client.post("/v1/score", content=b"{", headers=JSON).status_code == 401


def test_with_the_token_everything_answers(guarded: Service) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {TOKEN}"}
        assert guarded.client.get("/v1/bundle", headers=headers).status_code == 200
        body = {"user_id": "u08", "targets": [{"item_id": "i01"}]}
        assert guarded.client.post("/v1/score", json=body, headers=headers).status_code == 200


def test_token_of_the_environment_counts_where_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert read_token(None) == TOKEN
    (tmp_path / "token").write_text(TOKEN + "2\n")
    assert read_token(tmp_path / "token") == TOKEN + "2"


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * 40, "ä".encode() * 40])
def test_token_file_that_holds_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError, match="token"):
        read_token(tmp_path / "token")


def test_service_open_to_a_network_needs_a_token_or_to_be_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        require_guarded(host, None, False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ConfigError, match="token"):
            require_guarded(host, None, False)
        require_guarded(host, TOKEN, False)
        require_guarded(host, None, True)
    settings = Settings(workdir=world.store.root, serve=ServeConfig(host="0.0.0.0"))
    with pytest.raises(ConfigError, match=r"serve\.insecure"):
        config_of(settings, world.bundles[0].version)
    settings = settings.model_copy(update={"serve": settings.serve.model_copy(update={"insecure": True})})
    assert config_of(settings, world.bundles[0].version)["http_options"]["host"] == "0.0.0.0"


def test_replica_refuses_to_start_where_a_network_reaches_it_without_a_token(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a YAML, not `seminar serve`, says so."""
    from serve import app, ingress

    monkeypatch.delenv(VARIABLE, raising=False)
    serving = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0"))
    monkeypatch.setattr(ingress, "_get_global_client", lambda: serving)
    with pytest.raises(ConfigError, match="http_options"):
        app.Ingress({"workdir": str(world.store.root), "history": str(tmp_path / "history")}, None)
    assert not (tmp_path / "history").exists()


def refused(service: Service, content: bytes | Iterator[bytes], headers: dict[str, str] = JSON) -> tuple[int, dict[str, str]]:
    answer = service.client.post("/v1/score", content=content, headers=headers)
    problem = answer.json()["errors"][0]
    assert all(problem.values())
    return answer.status_code, problem


def test_body_is_counted_while_it_streams(service: Service) -> None:
    pieces = (b" " * (1 << 20) for _ in range(17))
    status, problem = refused(service, pieces)
    assert (status, problem["what"], problem["got"]) == (413, "body", f"more than {MAX_BODY_BYTES} bytes")
    status, problem = refused(service, b"{}", {**JSON, "content-length": "9" * 30})
    assert status == 413


def nested(depth: int) -> bytes:
    return b'{"user_id": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("content", "what", "got"),
    [
        (nested(MAX_DEPTH + 1), "body", "inside each other"),
        (nested(100_000), "body", "inside each other"),
        (b"[" * 1_000_000, "body", "inside each other"),
        (b'{"user_id": "' + b"]" * 50 + b'", "x": ' + b"[" * 50, "body", "inside each other"),
        (b'{"user_id": "u01", "user_id": "u02", "targets": []}', "user_id", "twice"),
        (b'{"user_id": "u01", "targets": [{"item_id": "i01", "item_id": "i01"}]}', "item_id", "twice"),
        (b'{"user_id": "u01", "targets": [], "time_ms": NaN}', "time_ms", "nan"),
        (b'{"user_id": "u01", "targets": [], "time_ms": -Infinity}', "time_ms", "-inf"),
        (b'{"user_id": "u01", "targets": [], "time_ms": ' + b"9" * 5000 + b"}", "body", "digits"),
        (b'{"user_id": "\xff"}', "body", "0xff"),
        (b"\xff\xfe{\x00}\x00", "body", "0xff"),
        (b'{"\\ud800": 1}', "body", "ud800"),
        (b'{"user_id" 7}', "body", "Expecting ':' delimiter at character 11"),
    ],
)
def test_body_of_no_single_meaning_is_refused(service: Service, content: bytes, what: str, got: str) -> None:
    answer = service.client.post("/v1/score", content=content, headers=JSON)
    assert answer.status_code == 422, answer.text
    problems = answer.json()["errors"]
    assert all(all(problem.values()) for problem in problems)
    assert any(problem["what"] == what and got in problem["got"] for problem in problems), problems


def test_brackets_in_texts_are_no_nesting() -> None:
    text = "[{" * 100 + '\\"' * 3
    assert parsed(json.dumps({"query": text, "deep": [[[]]], "more": ["["] * 30}).encode())["query"] == text
    assert parsed(nested(MAX_DEPTH))["user_id"] is not None
    with pytest.raises(Refused):
        parsed(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/xml", "json", "application/jsonx"])
def test_other_content_types_are_415(service: Service, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    status, problem = refused(service, b'{"user_id": "u01", "targets": [{"item_id": "i01"}]}', headers)
    assert (status, problem["what"]) == (415, "content-type")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "application/vnd.x+json"])
def test_json_content_types_are_taken(service: Service, content_type: str) -> None:
    body = b'{"user_id": "u01", "targets": [{"item_id": "i01"}]}'
    assert service.client.post("/v1/score", content=body, headers={"content-type": content_type}).status_code == 200


def test_request_id_is_the_clients_or_a_new_one(guarded: Service, service: Service) -> None:
    assert service.client.get("/v1/bundle", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    first, second = (service.client.get("/v1/health/live").headers["x-request-id"] for _ in range(2))
    assert first != second
    refused_too = guarded.client.get("/v1/bundle", headers={"x-request-id": "abc-2"})
    assert (refused_too.status_code, refused_too.headers["x-request-id"]) == (401, "abc-2")


def test_errors_of_the_server_keep_the_request_id(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(LocalStages, "here", False)
    monkeypatch.setattr(service.engine.stages, "score", fail)
    quiet = TestClient(service.client.app, raise_server_exceptions=False)
    body = {"user_id": "u01", "targets": [{"item_id": "i01"}]}
    answer = quiet.post("/v1/score", json=body, headers={"x-request-id": "abc-3"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "abc-3")
