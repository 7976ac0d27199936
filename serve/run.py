"""`seminar serve`: start the service of the current bundle on this machine, or on the cluster at ray.address."""

import atexit
import os
import shutil
import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve

from seminar.artifacts import Store
from seminar.config import Settings
from serve.deploy import APPLICATION, Serve, config_of, dashboard_of_session, served
from serve.ingress import Ingress, environment

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Running:
    """A service that answers at `url`. dashboard: where its bundle can be swapped, None in a session without one."""

    url: str
    dashboard: str | None
    version: str

    def stop(self) -> None:
        """End the service; Ray stays."""
        serve.shutdown()


def run(settings: Settings, block: bool = True) -> Running:
    """Serve the current bundle; replicas load the histories of its `pairs` artefact if their store lacks them.

    Uses the Ray session of this process if there is one, else the cluster at ray.address or RAY_ADDRESS, else starts one with a
    dashboard, which a swap needs. block: until interrupted, then stop the service.
    """
    bundle = Store(settings.workdir).open("bundle")
    local = _connect(settings)
    config = config_of(settings, bundle.version)
    if local:
        # The replicas' processes find `serve` and `seminar` where this one did; a cluster's image has them itself.
        config["applications"][0]["runtime_env"] = {"working_dir": f"local://{REPOSITORY}"}
    # Proxies start here, and read only once what to trace.
    started = {name: config.get(name) for name in ("proxy_location", "http_options", "grpc_options", "tracing_config")}
    serve.start(**started)
    service = Serve(dashboard_of_session())
    service.apply(config)
    service.wait_running([APPLICATION])
    running = Running(f"http://{settings.serve.host}:{settings.serve.port}", service.dashboard, bundle.version)
    _announce(running, settings.serve.token_file)
    if block:
        until_interrupted()
        running.stop()
    return running


def _connect(settings: Settings) -> bool:
    """True if Ray runs on this machine alone."""
    address = settings.ray.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return not address
    if address:
        ray.init(address=address, log_to_driver=False)
        return False
    # HAProxy's sockets lie here as long as the service runs; removed when this process ends.
    folder = Path(tempfile.mkdtemp(prefix="seminar-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    start_ray(settings.serve.ingress, folder, num_cpus=settings.ray.num_cpus, dashboard=True)
    return True


def start_ray(ingress: Ingress, folder: Path, *, num_cpus: int | None = None, dashboard: bool = False) -> None:
    """A Ray of this process whose Serve has this ingress. folder: for HAProxy's files, a short path of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray gives its workers low priority, as suits jobs: a service must not wait for everything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.update(environment(ingress, folder))
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
    )


def _announce(running: Running, token_file: Path | None) -> None:
    bundle = served(running.url, token_file)
    print(f"serving bundle {running.version} ({bundle['items']:,} items, {bundle['users']:,} users) at {running.url}")
    print(f"explorer: {running.url}/explorer/    a user's history, and what made a score")
    print(f"documentation: {running.url}/docs    versions: {running.url}/v1/bundle    Ray: {running.dashboard or 'no dashboard'}")
    body = '{"user_id": "1", "targets": [{"item_id": "ITEM"}], "explain": true}'
    print(f"try: curl -s {running.url}/v1/score -H 'content-type: application/json' -d '{body}'", flush=True)
    if bundle["recommends"]:
        body = '{"user_id": "1", "n": 5}'
        print(f" or: curl -s {running.url}/v1/recommend -H 'content-type: application/json' -d '{body}'", flush=True)


def until_interrupted() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
