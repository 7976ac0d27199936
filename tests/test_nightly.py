"""cluster/kuberay/nightly.py against an API server that speaks the three calls it makes."""

import importlib.util
import json
import subprocess
import sys
import threading
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from seminar.cli import parse_job_args
from tests.kuberay import problems

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "cluster/kuberay/nightly.py"
TEMPLATE = yaml.safe_load((ROOT / "cluster/kuberay/rayjob-refresh.yaml").read_text())
NIGHT = date(2026, 3, 1)
RUNNING, SUCCEEDED, FAILED = ("Running", "RUNNING"), ("Complete", "SUCCEEDED"), ("Failed", "FAILED")


@pytest.fixture(scope="module")
def nightly() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nightly", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ApiServer:
    """RayJobs in memory. `story[name]` holds what each look at a job finds, the last for ever; an int is an HTTP error."""

    def __init__(self, story: dict[str, list[tuple[str, str] | int]]) -> None:
        self.story = story
        self.jobs: dict[str, dict[str, Any]] = {}
        self.tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "ApiServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api, root = self, "/apis/ray.io/v1/namespaces/ml/rayjobs"

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = job["metadata"]["name"]
                if self.path != root:
                    self._answer(404, {})
                elif name in api.jobs:
                    self._answer(409, {})
                else:
                    api.jobs[name] = job
                    self._answer(201, job)

            def do_GET(self) -> None:
                name = self.path.removeprefix(f"{root}/")
                if name not in api.jobs:
                    self._answer(404, {})
                    return
                looks = api.story[name]
                now = looks.pop(0) if len(looks) > 1 else looks[0]
                if isinstance(now, int):
                    self._answer(now, {})
                else:
                    self._answer(200, {**api.jobs[name], "status": {"jobDeploymentStatus": now[0], "jobStatus": now[1]}})

            def _answer(self, code: int, body: dict[str, Any]) -> None:
                api.tokens.add(self.headers["Authorization"])
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "namespace").write_text("ml\n")
    (tmp_path / "token").write_text("secret\n")
    return tmp_path


@pytest.fixture
def run(nightly: ModuleType, account: Path) -> Any:
    def night(api: ApiServer) -> bool:
        return nightly.run_night(nightly.RayJobs(api.url, account), TEMPLATE, NIGHT, attempts=3, poll_s=0.01)

    return night


def _name(attempt: int) -> str:
    return f"seminar-refresh-20260301-{attempt}"


def test_dated_job_is_valid_and_carries_the_night(nightly: ModuleType) -> None:
    job = nightly.manifest(TEMPLATE, NIGHT, 2)
    assert problems(job) == []
    assert job["metadata"]["name"] == job["spec"]["jobId"] == _name(2)
    settings = parse_job_args(job["spec"]["entrypoint"].replace("/app/", f"{ROOT}/").split()[4:])
    assert settings.refresh.run_id == "2026-03-01"
    assert TEMPLATE["metadata"]["name"] == "seminar-refresh"


def test_night_waits_until_the_job_succeeded(run: Any) -> None:
    with ApiServer({_name(1): [("", ""), RUNNING, RUNNING, SUCCEEDED]}) as api:
        assert run(api)
    assert list(api.jobs) == [_name(1)]
    assert api.tokens == {"Bearer secret"}


def test_failed_attempt_is_followed_by_one_with_the_same_run_id(run: Any) -> None:
    with ApiServer({_name(1): [RUNNING, FAILED], _name(2): [RUNNING, SUCCEEDED]}) as api:
        assert run(api)
    first, second = (api.jobs[_name(attempt)]["spec"]["entrypoint"] for attempt in (1, 2))
    assert first == second


def test_night_fails_when_every_attempt_failed(run: Any) -> None:
    with ApiServer({_name(1): [FAILED], _name(2): [("ValidationFailed", "")], _name(3): [FAILED]}) as api:
        assert not run(api)
    assert len(api.jobs) == 3


def test_restarted_pod_watches_the_night_that_is_running(run: Any) -> None:
    with ApiServer({_name(1): [RUNNING, SUCCEEDED]}) as api:
        api.jobs[_name(1)] = {"made": "by the pod before"}
        assert run(api)
    assert api.jobs == {_name(1): {"made": "by the pod before"}}


def test_api_server_restart_does_not_end_the_night(run: Any) -> None:
    with ApiServer({_name(1): [RUNNING, 503, 503, SUCCEEDED]}) as api:
        assert run(api)
    assert len(api.jobs) == 1


def test_script_exits_with_the_outcome_of_the_night(account: Path) -> None:
    with ApiServer({_name(1): [FAILED], _name(2): [SUCCEEDED]}) as api:
        command = [sys.executable, str(SCRIPT), "--night", "2026-03-01", "--poll-s", "0.01", "--server", api.url]
        command += ["--account", str(account), "--attempts"]
        failed = subprocess.run([*command, "1"], capture_output=True, text=True, timeout=30)
        done = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=30)
    assert failed.returncode == 1, failed.stderr
    assert done.returncode == 0, done.stderr
    assert f"{_name(1)}: already there, watching it" in done.stdout
    assert f"{_name(2)}: Complete SUCCEEDED" in done.stdout
