"""`seminar serve` behind HAProxy with Serve's throughput settings: what it must keep of what Serve's own proxy does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve_client import Plan
from seminar.artifacts import Artifact, Store
from serve.deploy import served
from tests.ray_machines import ROOT, clean_environment, free_ports
from tests.served_world import World, offline
from tests.test_serve_ray import ITEMS, LATER_MS, recommend, score

pytestmark = pytest.mark.cluster
START_S = 300.0
SWAPS = """
import sys
from serve.deploy import swap

dashboard, url, *versions = sys.argv[1:]
for version in versions:
    swap(dashboard, url, version)
"""


@pytest.fixture(scope="module")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@dataclass(frozen=True)
class Running:
    """A `seminar serve` of its own. dashboard: of its Ray; environment: reaches it."""

    port: int
    dashboard: str
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def python(self, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], env=dict(self.environment), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def running(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("haproxy")
    # Ray keeps Unix sockets here, whose paths may have 107 bytes.
    short = tempfile.mkdtemp(prefix="seminar-", dir="/tmp")
    environment = {**clean_environment(), "RAY_TMPDIR": short, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "seminar.cli", "serve", "--workdir", str(world.store.root), "--serve.port", str(port)]
    command += ["--serve.history", str(folder / "history"), "--serve.keys", str(folder / "keys")]
    command += ["--serve.max-history-gib", "0.1", "--serve.overfetch", "64", "--ray.num-cpus", "2"]
    log = folder / "serve.log"
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        yield Running(port, _dashboard(process, log), environment)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-2000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(short, ignore_errors=True)


def _dashboard(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while "\ntry: " not in log.read_text():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)
    return log.read_text().split("Ray: ")[1].split()[0]


def load(running: Running, folder: Path, **how: object) -> dict[str, object]:
    """What the load generator says of score requests."""
    body = {"user_id": "u08", "targets": [{"item_id": item} for item in ITEMS], "time_ms": LATER_MS}
    requests, plan = folder / "requests.txt", folder / "plan.json"
    requests.write_text(f"u08\t{json.dumps(body, separators=(',', ':'))}")
    plan.write_text(json.dumps(asdict(Plan(running.port, "/v1/score", str(requests), scores=len(ITEMS), **how))))
    return json.loads(running.python("-m", "benchmarks.serve_client", str(plan)))


def test_scores_and_recommendations_are_the_offline_ones(running: Running, world: World) -> None:
    for user in ("u01", "u08", "u29"):
        expected = offline(world, world.bundles[0], user, ITEMS, None, LATER_MS)
        assert np.allclose(score(running.url, user)["scores"], expected, atol=1e-5)
    items = [item["item_id"] for item in recommend(running.url, "u08")["items"]]
    expected = offline(world, world.bundles[0], "u08", items, None, LATER_MS)
    assert np.allclose([item["score"] for item in recommend(running.url, "u08")["items"]], expected, atol=1e-5)


def test_bundle_is_swapped_in_place_under_load_and_nobody_fails(running: Running, world: World, tmp_path: Path) -> None:
    before = _pids(running)
    command = [sys.executable, "-c", SWAPS, running.dashboard, running.url, *(b.version for b in reversed(world.bundles))]
    swaps = subprocess.Popen(command, env=dict(running.environment), cwd=ROOT)
    told = load(running, tmp_path, seconds=20.0, concurrency=4)
    assert swaps.wait(120) == 0
    assert told["failures"] == []
    assert told["good"] == told["sent"]
    assert _pids(running) == before


def test_overload_is_answered_with_503_and_retry_after(running: Running, tmp_path: Path) -> None:
    """More than a replica lets wait, by clients that do not wait before they try again: refusing them leaves time to score."""
    told = load(running, tmp_path, seconds=3.0, concurrency=500)
    assert told["failures"] == []
    assert told["refused"] == told["statuses"]["503"] > 0
    assert told["good"] > 0


def test_only_this_machine_reaches_the_service(running: Running) -> None:
    """HAProxy's two pages of statistics are the exception that docs/service.md tells of."""
    sockets = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {address for _, address, _, state, *_ in sockets if state == "0A" and address.endswith(f":{running.port:04X}")}
    assert listening == {f"0100007F:{running.port:04X}"}


def _pids(running: Running) -> dict[str, int]:
    return {state["replica"]: state["pid"] for state in served(running.url)["replicas"]}
