"""Replicas that come and go with the load by `serve.autoscaling.Policy`, under requests that must not fail.

    python -m benchmarks.serve_scaling PHASE.json

Concurrency 8 for a minute, then 1: the policy of serve/fused.yaml with delays of seconds. A replica is told of once it answers.
"""

import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve

from benchmarks.serve_phase import START_S, Measurement, Phase, services
from serve.deploy import Serve, served
from serve.run import start_ray

UP_S, DOWN_S = 60.0, 75.0
MOST = 2
SCALING = {
    "min_replicas": 1,
    "max_replicas": MOST,
    "target_ongoing_requests": 4,
    "upscale_delay_s": 2,
    "downscale_delay_s": 5,
    "metrics_interval_s": 2,
    "look_back_period_s": 5,
    "policy": {"policy_function": "serve.autoscaling:Policy", "policy_kwargs": {"target_p95_ms": 50}},
}


def run(phase: Phase, folder: Path) -> dict[str, Any]:
    """Blocks of load, and how many replicas answered when."""
    start_ray(phase.ingress, folder, num_cpus=16)
    config = services(phase)
    (deployment,) = config["applications"][0]["deployments"]
    del deployment["num_replicas"]
    deployment["autoscaling_config"] = SCALING
    ray_serve.start(proxy_location="HeadOnly", http_options=config["http_options"])
    service = Serve(None)
    service.apply(config)
    service.wait_running([application["name"] for application in config["applications"]], START_S)
    measurement = Measurement(phase, folder)
    watched = Watch(f"http://127.0.0.1:{phase.port}/seminar")
    try:
        with watched:
            measurement.measure("seminar", "warming", "once", concurrency=1, once=True, seconds=30)
            watched.mark("load")
            measurement.measure("seminar", "up", "warm", concurrency=8, seconds=UP_S)
            watched.mark("calm")
            measurement.measure("seminar", "down", "warm", concurrency=1, seconds=DOWN_S)
    finally:
        ray_serve.shutdown()
        ray.shutdown()
    return {"phase": asdict(phase), "rows": measurement.rows, "replicas": watched.seen, "marks": watched.marks}


class Watch:
    """Replicas of the service, once a second from another thread."""

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self.seen: list[tuple[float, int]] = []
        self.marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        self.marks[name] = time.monotonic()

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.seen.append((time.monotonic(), len(served(self._url)["replicas"])))


def main() -> None:
    path = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as folder:
        result = run(Phase(**json.loads(path.read_text())), Path(folder))
    path.with_suffix(".result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
