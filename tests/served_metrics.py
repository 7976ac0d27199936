"""Two applications, `fused` and `split`, watched and traced whole, and what their node exports."""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve

from seminar.config import ServeConfig, Settings
from serve.deploy import Serve, config_of
from serve.run import REPOSITORY
from tests.served_world import World

SAMPLED = {"recall_sample": 1, "drift_window": 100, "log_sample": 1}


@dataclass(frozen=True)
class Watched:
    """url: base of both, `/fused` and `/split` behind it. logs: folder of Serve's logs."""

    url: str
    logs: Path

    def metrics(self, *until: str, timeout_s: float = 60) -> str:
        """What the node exports, once it names all of `until`."""
        node = ray.nodes()[0]
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
