"""`ray job submit` to a real head that demands a token, in processes apart from the test session's Ray."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seminar.artifacts import Artifact, Store
from seminar.config import DataConfig
from tests import ray_machines
from tests.ray_machines import RAY, ROOT, Head

pytestmark = pytest.mark.cluster
SUBMISSION = "seminar-prepare-1"
TIMEOUT_S = 180


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_machines.head(tmp_path_factory.mktemp("head") / "ray.log") as running:
        yield running


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: DataConfig) -> Path:
    """Settings of the same `prepare` as the fixture `tiny_pairs`."""
    folder = tmp_path_factory.mktemp("submitted")
    lines = [f"workdir = {json.dumps(str(folder / 'work'))}", "[prepare]", "num_shards = 4", "chunk_length = 16"]
    lines += ["[data]", 'source = "tables"', f"path = {json.dumps(str(tiny_dataset.path))}"]
    (folder / "job.toml").write_text("\n".join(lines))
    return folder / "job.toml"


@pytest.fixture(scope="module")
def submitted(head: Head, config: Path) -> subprocess.CompletedProcess[str]:
    done = _submit(head, config)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done


def test_submitted_job_publishes_what_one_process_prepares(
    submitted: subprocess.CompletedProcess[str], config: Path, tiny_pairs: Artifact
) -> None:
    pairs = Store(config.parent / "work").open("pairs")
    pairs.verify()
    assert pairs.manifest.files == tiny_pairs.manifest.files
    assert f"prepare: {pairs.path}" in submitted.stdout


def test_submission_id_used_twice_is_refused(head: Head, submitted: subprocess.CompletedProcess[str], config: Path) -> None:
    again = _submit(head, config)
    assert again.returncode != 0
    assert SUBMISSION in again.stdout + again.stderr


def test_seminar_submit_attaches_to_the_job_that_ran(
    head: Head, submitted: subprocess.CompletedProcess[str], config: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(head.environment["RAY_AUTH_TOKEN"])
    environment = {key: value for key, value in head.environment.items() if not key.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", "import sys; from seminar.cli import main; sys.exit(main())", "submit", "prepare"]
    command += ["--address", head.dashboard, "--token-path", str(token), "--submission-id", SUBMISSION, "--config", str(config)]
    attached = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert attached.returncode == 0, attached.stderr[-4000:]
    assert "prepare: " in attached.stdout


def test_dashboard_refuses_a_request_without_the_token(head: Head) -> None:
    assert ray_machines.fetch(head, "/api/jobs/") == 200
    assert ray_machines.fetch(head, "/api/jobs/", token=False) == 401


def _submit(head: Head, config: Path) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--submission-id", SUBMISSION]
    command += ["--", "python", "-m", "workflows", "prepare", "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, env=dict(head.environment), capture_output=True, text=True, timeout=TIMEOUT_S)
