"""The image, the job upload and `ray up`: what they name exists, and Ray's own parsers and schemas accept it."""

import fnmatch
import itertools
import logging
import re
import shlex
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from seminar.cli import parse_job_args
from seminar.config import load_settings
from tests.kuberay import pods
from workflows.__main__ import JOBS

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
RAY_UP = yaml.safe_load((ROOT / "cluster/ray-up.yaml").read_text())
GUIDE = (ROOT / "docs/cluster.md").read_text()


def _instructions(name: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(f"{name} ") for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_everything_the_image_copies_exists_and_is_let_through() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for instruction in _instructions("COPY"):
        for source in instruction.split()[:-1]:
            assert (ROOT / source).exists(), source
            ignored = False
            for rule in rules:
                if fnmatch.fnmatch(source, rule.removeprefix("!")):
                    ignored = not rule.startswith("!")
            assert not ignored, source


def test_settings_of_the_cluster_name_files_that_the_image_holds() -> None:
    images = load_settings(ROOT / "cluster/settings.toml").data.images
    assert images is not None
    inside = images.relative_to(_instructions("WORKDIR")[0])
    assert (ROOT / inside).is_dir()
    assert inside.parts[0] in [instruction.split()[0] for instruction in _instructions("COPY")]


def test_image_installs_extras_that_the_project_has() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    chosen = dict(argument.split("=") for argument in _instructions("ARG"))
    assert chosen["VARIANT"] in ("cpu", "gpu")
    assert {"cpu", "gpu", *chosen["EXTRAS"].split(",")} <= extras.keys()
    assert any("--constraint constraints.txt" in run for run in _instructions("RUN"))


def test_image_runs_as_the_user_that_the_pods_ask_for() -> None:
    (uid,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE)
    assert _instructions("USER") == ["ray"]
    for path in (ROOT / "cluster/kuberay").glob("ray*.yaml"):
        for manifest in yaml.safe_load_all(path.read_text()):
            assert {pod["securityContext"]["runAsUser"] for pod in pods(manifest)} <= {int(uid)}


def test_the_environment_of_the_image_comes_first_for_jobs() -> None:
    environment = dict(pair.split("=", 1) for pair in shlex.split(" ".join(_instructions("ENV"))))
    assert environment["PATH"].startswith("/opt/venv/bin:")
    assert environment["PYTHONPATH"] == _instructions("WORKDIR")[0] == "/app"
    assert "export PATH=/opt/venv/bin:$PATH" in DOCKERFILE


def test_a_submitted_job_uploads_the_code_and_nothing_else(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "job.zip"
    create_package(str(ROOT), package, include_gitignore=True, logger=logging.getLogger("quiet"))
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    assert {"workflows/__main__.py", "seminar/config.py", "serve/__init__.py", "pyproject.toml"} <= set(names)
    folders = {name.split("/")[0] for name in names}
    assert not folders & {".git", ".venv", ".ci", "runs", "tests", "docs", "benchmarks", "dist", "site"}
    assert package.stat().st_size < 16 * 2**20


def test_ray_up_accepts_the_launcher_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(RAY_UP)
    validate_config(prepared)
    node_type = prepared["available_node_types"][prepared["head_node_type"]]
    assert node_type["max_workers"] == len(RAY_UP["provider"]["worker_ips"])


@pytest.mark.parametrize("role", ["head", "worker"])
def test_launcher_commands_are_accepted_by_ray(role: str) -> None:
    stop, start = RAY_UP[f"{role}_start_ray_commands"]
    assert stop == "ray stop"
    values = _ray(start)
    assert values["metrics_export_port"] == 8080
    if role == "head":
        assert values["head"]
        assert (values["port"], values["dashboard_port"]) == (6379, 8265)
    else:
        assert values["address"] == "$RAY_HEAD_IP:6379"


def test_a_flag_that_ray_does_not_know_would_be_found() -> None:
    with pytest.raises(click.exceptions.NoSuchOption):
        _ray("ray start --head --dashbord-port=8265")


def test_launched_nodes_share_token_and_data() -> None:
    options = RAY_UP["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert any(option.startswith("--volume ") and option.endswith(":/data") for option in options)
    assert RAY_UP["file_mounts"] == {"/home/ray/.ray": "~/.ray"}


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("command", _commands())
def test_every_command_of_the_guide_is_one_that_exists(command: str) -> None:
    words = shlex.split(command, comments=True)
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word) and word != "export"]
    for flag, path in itertools.pairwise(words):
        if flag in ("-f", "-k", "--config") and not path.startswith("/"):
            assert (ROOT / path).exists(), path
    if words[:1] == ["ray"] and words[1] in ("start", "job", "up", "down", "get-auth-token"):
        _ray(command)
    if "workflows" in words:
        job, *arguments = words[words.index("workflows") + 1 :]
        assert job in JOBS
        parse_job_args([argument.replace("/app/", f"{ROOT}/") for argument in arguments])


def _ray(command: str) -> dict[str, Any]:
    """Values that Ray's own command line reads from a command; click's error for one that it would refuse."""
    from ray.scripts.scripts import cli

    words = shlex.split(command, comments=True)
    words = words[words.index("ray") + 1 :]
    group: click.Command = cli
    while isinstance(group, click.Group):
        name = words.pop(0)
        found = group.commands.get(name)
        assert found is not None, f"ray has no command {name!r}"
        group = found
    return group.make_context(group.name or "", words).params
