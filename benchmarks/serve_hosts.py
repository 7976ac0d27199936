"""The service on three hosts of one machine, one replica and one HAProxy each, over histories in a Redis on a fourth."""

import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from benchmarks.hosts import Host
from seminar.artifacts import Store
from seminar.errors import SeminarError, explain
from serve.deploy import config_of
from serve.ingress import environment as ingress_environment
from serve.run import REPOSITORY

REDIS_PORT, GCS_PORT, DASHBOARD_PORT, SERVE_PORT = 6400, 6401, 8265, 8000
START_S = 180


class Machines:
    """What runs where; start the store, then Ray, then deploy."""

    def __init__(self, folder: Path, keeper: Host, nodes: Sequence[Host]) -> None:
        self.folder, self.keeper, self.nodes = folder, keeper, nodes
        # HAProxy and Ray put sockets deep into it, whose whole names may have 97 characters.
        self.temporary = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # The bridge ends at this machine, so Ray needs no token on it.
        self._environment = {**clean, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        os.environ["RAY_AUTH_MODE"] = "disabled"

    def start_store(self) -> str:
        """Redis that is on disk before it answers; its URL."""
        data = self.folder / "redis"
        data.mkdir()
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(data), "--protected-mode", "no"]
        command = ["redis-server", "--port", str(REDIS_PORT), "--bind", "0.0.0.0", "--maxmemory-policy", "noeviction", *durable]
        self.keeper.start(command, self._environment, self.folder / "redis.log")
        time.sleep(1)
        return f"redis://{self.keeper.address}:{REDIS_PORT}/0"

    def start_ray(self) -> None:
        head = self.nodes[0]
        ray = str(Path(sys.executable).with_name("ray"))
        common = [ray, "start", "--block", "--num-cpus=2", "--disable-usage-stats", "--object-store-memory=200000000"]
        first = [
            *common,
            "--head",
            f"--node-ip-address={head.address}",
            f"--port={GCS_PORT}",
            f"--temp-dir={self.temporary / 'ray'}",
        ]
        first += ["--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
        self._start_node(head, first)
        self.dashboard = f"http://{head.address}:{DASHBOARD_PORT}"
        wait(lambda: _answers(f"{self.dashboard}/api/version"), START_S, "the dashboard")
        for host in self.nodes[1:]:
            self._start_node(host, [*common, f"--address={head.address}:{GCS_PORT}", f"--node-ip-address={host.address}"])

    def _start_node(self, host: Host, command: list[str]) -> None:
        # Ray gives a node 30 s to register, which a busy machine can miss.
        log = self.folder / f"{host.name}.log"
        ingress = self.temporary / host.name[-2:]
        ingress.mkdir()
        environment = self._environment | ingress_environment("haproxy", ingress)
        process = host.start(command, environment, log)

        def started() -> bool:
            nonlocal process
            if process.poll() is not None:
                process = host.start(command, environment, log)
            return "Ray runtime started." in log.read_text()

        wait(started, START_S, f"Ray on {host.name}")

    def deploy(self, settings: Any) -> None:
        """One ingress replica and one proxy a host."""
        config = config_of(settings, Store(settings.workdir).current("bundle"))
        config["proxy_location"] = "EveryNode"
        config["http_options"] |= {"host": "0.0.0.0", "port": SERVE_PORT}
        (application,) = config["applications"]
        application["runtime_env"] = {"working_dir": f"local://{REPOSITORY}", "env_vars": {"OMP_NUM_THREADS": "1"}}
        # Nobody but this machine reaches these hosts.
        application["args"]["insecure"] = True
        (ingress,) = application["deployments"]
        del ingress["autoscaling_config"]
        ingress |= {"num_replicas": len(self.nodes), "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 1}}
        wait(lambda: _deployed(self.dashboard, config), START_S, "the dashboard's Serve")
        client = ServeSubmissionClient(self.dashboard)

        def running() -> bool:
            found = client.get_serve_details()["applications"]
            if any(one["status"] in ("DEPLOY_FAILED", "UNHEALTHY") for one in found.values()):
                raise SeminarError(explain("deploy", got=str(found)[:2000], expected="RUNNING", fix="see its message"))
            return bool(found) and all(one["status"] == "RUNNING" for one in found.values())

        wait(running, 2 * START_S, "the service")
        urls = [f"http://{host.address}:{SERVE_PORT}/v1/health/ready" for host in self.nodes]
        wait(lambda: all(_answers(url) for url in urls), START_S, "a proxy on every host")

    def lose(self, host: Host, *, silent: bool) -> int:
        """The host is gone from one moment to the next; how many processes it had. silent: nobody tells its peers."""
        if silent:
            host.cut()
        return host.kill()


def _deployed(dashboard: str, config: dict[str, Any]) -> bool:
    """False as long as the dashboard does not take configs yet."""
    try:
        ServeSubmissionClient(dashboard).deploy_applications(config)
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait(until: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not until():
        if time.monotonic() > deadline:
            raise SeminarError(explain(what, got=f"nothing in {timeout_s:.0f} s", expected="it", fix="look at the logs"))
        time.sleep(0.5)
