"""Ray heads and nodes of a test's own, in processes apart from the test session's Ray, and gone when the test ends."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
START_TIMEOUT_S = 120
Started = TypeVar("Started")

_CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(int(sys.argv[1]) - 1):
    cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class Head:
    """A running `ray start --head`: its dashboard and the environment its clients need."""

    dashboard: str
    environment: Mapping[str, str]


def clean_environment() -> dict[str, str]:
    """The caller's environment without a trace of another Ray, with a token of its own and the venv first on PATH."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def head(log: Path) -> contextlib.AbstractContextManager[Head]:
    """`ray start --head` on free ports with two CPUs; its output goes to `log`."""
    return _second_try(lambda: _head(log))


def cluster(nodes: int, log: Path) -> contextlib.AbstractContextManager[dict[str, str]]:
    """`ray.cluster_utils.Cluster` of `nodes` nodes with one CPU each; gives the environment that reaches it."""
    return _second_try(lambda: _cluster(nodes, log))


class NotStarted(Exception):
    """Ray ended, or did not answer in time; holds the end of its output."""


@contextlib.contextmanager
def _second_try(start: Callable[[], contextlib.AbstractContextManager[Started]]) -> Iterator[Started]:
    # Ray gives a node 30 s to register, which a machine busy with other tests can miss; a free port may be taken meanwhile.
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(start())
        except NotStarted:
            started = stack.enter_context(start())
        yield started


@contextlib.contextmanager
def _head(log: Path) -> Iterator[Head]:
    environment = clean_environment()
    gcs, dashboard, client, metrics, agent, agent_grpc = free_ports(6)
    with _short_folder() as temporary:
        command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={temporary}"]
        command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        command += [f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--dashboard-agent-grpc-port={agent_grpc}"]
        with _process(command, environment, log) as process:
            running = Head(f"http://127.0.0.1:{dashboard}", environment)
            _wait_for(running, process, log)
            yield running


@contextlib.contextmanager
def _cluster(nodes: int, log: Path) -> Iterator[dict[str, str]]:
    environment = clean_environment()
    with _short_folder() as temporary:
        environment["RAY_TMPDIR"] = temporary
        command = [sys.executable, "-c", _CLUSTER, str(nodes)]
        with _process(command, environment, log, talk=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            address = process.stdout.readline().strip()
            if not address:
                raise NotStarted(log.read_text()[-4000:])
            yield {**environment, "RAY_ADDRESS": address}
            process.stdin.close()
            process.wait(60)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def fetch(running: Head, path: str, *, token: bool = True) -> int:
    """HTTP status of a GET on the dashboard, 0 when nobody answers."""
    headers = {"Authorization": f"Bearer {running.environment['RAY_AUTH_TOKEN']}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(running.dashboard + path, headers=headers), timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _wait_for(running: Head, process: subprocess.Popen[str], log: Path) -> None:
    # The dashboard answers before the node itself is registered, so its answer alone does not mean that jobs can run.
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Ray runtime started." not in log.read_text() or fetch(running, "/api/jobs/") != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotStarted(log.read_text()[-4000:])
        time.sleep(0.5)


@contextlib.contextmanager
def _process(
    command: list[str], environment: Mapping[str, str], log: Path, *, talk: bool = False
) -> Iterator[subprocess.Popen[str]]:
    # A session of its own, so that exactly this process and what it started can be ended: `ray stop` would end everybody's Ray.
    pipe = subprocess.PIPE if talk else None
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe or output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            # A head drains its jobs for up to 30 s, which a test need not wait for.
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    # Ray keeps Unix sockets below it, whose paths may have 107 bytes: pytest's own folders are too long.
    folder = tempfile.mkdtemp(prefix="seminar-", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
