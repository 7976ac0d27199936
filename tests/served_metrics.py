"""Two applications, `fused` and `split`, watched and traced whole, and what their node exports."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve

from seminar.config import ServeConfig, Settings
from serve.deploy import Serve, config_of
from serve.run import REPOSITORY
from tests.metric_names import CLUSTER
from tests.served_world import World

SAMPLED = {"recall_sample": 1, "drift_window": 100, "log_sample": 1}


@dataclass(frozen=True)
class Watched:
    """url: base of both, `/fused` and `/split` behind it. logs: folder of Serve's logs."""

    url: str
    logs: Path

    @property
    def exporter(self) -> str:
        """Host and port of the node's metrics."""
        node = ray.nodes()[0]
        return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"

    def metrics(self, *until: str, timeout_s: float = 60) -> str:
        """What the node exports, once it names all of `until`."""
        address = f"http://{self.exporter}/metrics"
        deadline, text = time.monotonic() + timeout_s, ""
        while time.monotonic() < deadline:
            with urllib.request.urlopen(address, timeout=30) as answer:
                text = answer.read().decode()
            if all(f"\n{name}{{" in text for name in until):
                return text
            time.sleep(1)
        missing = [name for name in until if f"\n{name}{{" not in text]
        raise AssertionError(f"not exported after {timeout_s:.0f} s: {missing}")


@contextmanager
def watched_service(world: World, history: Path, **settings: Any) -> Iterator[Watched]:
    """Both topologies in the Ray session of this process, small; every request traced."""
    port = free_port()
    serving = ServeConfig(port=port, history=history, max_history_gib=0.1, retriever="int8", trace_sample=1, **settings)
    configs = [
        config_of(Settings(workdir=world.store.root, serve=chosen), world.bundles[0].version)
        for chosen in (serving, serving.model_copy(update={"topology": "split", "recommend": False}))
    ]
    applications = [_small(config["applications"][0], name) for config, name in zip(configs, ("fused", "split"), strict=True)]
    config = {**configs[0], "proxy_location": "HeadOnly", "applications": applications}
    serve.start(**{name: config[name] for name in ("proxy_location", "http_options", "tracing_config")})
    try:
        service = Serve(None)
        service.apply(config)
        service.wait_running(["fused", "split"], timeout_s=600)
        yield Watched(f"http://127.0.0.1:{port}", Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve")
    finally:
        serve.shutdown()


def _small(application: dict[str, Any], name: str) -> dict[str, Any]:
    # Two scorers under a policy, so that Serve exports what its autoscaler wants.
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.05}
    runtime_env = {"working_dir": f"local://{REPOSITORY}"}
    return {**application, "name": name, "route_prefix": f"/{name}", "runtime_env": runtime_env}


@contextmanager
def prometheus_of(watched: Watched, folder: Path) -> Iterator[str]:
    """Base URL of a Prometheus of our rules and scrape config, but of this node alone and every second."""
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CLUSTER / "prometheus/rules.yml")]
    del config["scrape_configs"][0]["file_sd_configs"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [watched.exporter]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    server = subprocess.Popen(
        ["prometheus", *options, f"--web.listen-address={address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_ready(f"http://{address}/-/ready")
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_ready(url: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, "prometheus does not start"
            time.sleep(0.3)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
