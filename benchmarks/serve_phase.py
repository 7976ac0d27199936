"""One Ray with one ingress, one topology and one number of replicas: everything deployed, checked and measured in turns.

    python -m benchmarks.serve_phase PHASE.json

Ingress and flags are environment variables that Ray reads when it starts, so every combination is a process of its own.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from ray import serve as ray_serve

from benchmarks.serve_client import HOST, Plan
from benchmarks.serve_routing import cache_counts, stickiness
from benchmarks.serve_world import PLANTED, TARGETS, World, offline, planted_user
from seminar.bundle import Bundle
from seminar.config import ServeConfig, Settings
from serve.deploy import Serve, config_of
from serve.ingress import Ingress
from serve.run import REPOSITORY, start_ray

CLOSED = (1, 8, 32)
LONG_CONCURRENCY = 4
OPEN = (0.25, 0.5, 0.75, 0.9)
"""Arrival rates by the requests a second of the closed loop at 32."""
OVERLOAD = 4.0
RIVALS = ("id", "channels")
HEADERS = ("x-session-id", "no header")
Setting = tuple[int, int]
"""Threads of torch and requests at once."""
THREADS: tuple[Setting, ...] = ((1, 2), (2, 1), (1, 1))
"""Those that a rival may choose from."""
START_S = 600.0


@dataclass(frozen=True)
class Phase:
    """What to start and how long to measure it. seconds: of a block; rounds: how often each closed block takes its turn."""

    workdir: str
    history: str
    ingress: Ingress
    topology: Literal["fused", "split"]
    replicas: int
    port: int
    seconds: float
    rounds: int
    warm_users: int
    cold_users: int
    rivals: bool
    open_loop: bool


class Measurement:
    """Runs blocks against the services of a phase and keeps their results. folder: of request files."""

    def __init__(self, phase: Phase, folder: Path) -> None:
        self.phase, self.folder = phase, folder
        self.world = World.open(Path(phase.workdir))
        self.rows: list[dict[str, Any]] = []
        cold, warm = self.world.cold_and_warm()
        self.cold, self.warm = cold[: phase.cold_users], warm[: phase.warm_users]
        self._files = {
            "cold": self._file("cold", self.world.bodies(self.cold, len(self.cold))),
            "warm": self._file("warm", self.world.bodies(self.warm)),
            "once": self._file("once", self.world.bodies(self.warm, len(self.warm), seed=1)),
            **{name: self._file(name, self.world.bodies(users, 4 * len(users))) for name, users in self._fresh(cold).items()},
            "trivial": self._file("trivial", (f"{user}\t" for user in self.warm)),
        }
        for length, users in PLANTED.items():
            names = [planted_user(length, i) for i in range(users)]
            self._files[str(length)] = self._file(str(length), self.world.bodies(names, 10 * users))

    def _fresh(self, cold: Sequence[str]) -> dict[str, Sequence[str]]:
        """Users that no other block asks for, half of them with the header."""
        rest = cold[self.phase.cold_users :]
        return {HEADERS[0]: rest[::2], HEADERS[1]: rest[1::2]}

    def plan(self, service: str, file: str, **how: Any) -> Plan:
        """A plan for one service."""
        path, scores = self._target(service)
        given: dict[str, Any] = {"seconds": self.phase.seconds, **how}
        return Plan(self.phase.port, path, self._files[file], scores=scores, **given)

    def measure(self, service: str, name: str, file: str, **how: Any) -> dict[str, Any]:
        """One block in a process of its own."""
        path = self.folder / "plan.json"
        plan = self.plan(service, file, **how)
        path.write_text(json.dumps(asdict(plan)))
        command = [sys.executable, "-m", "benchmarks.serve_client", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        if done.returncode:
            raise RuntimeError(f"the load generator ended: {done.stderr[-2000:]}")
        result = json.loads(done.stdout)
        self.rows.append({"service": service, "block": name, "concurrency": plan.concurrency, "rate": plan.rate, **result})
        return result

    def _target(self, service: str) -> tuple[str, int]:
        known = {"trivial": ("/trivial/", 0), "seminar": ("/seminar/v1/score", TARGETS)}
        return known.get(service, (f"/rival/{service}/score", TARGETS))

    def _file(self, name: str, lines: Iterator[str]) -> str:
        path = self.folder / f"{name}.txt"
        path.write_text("\n".join(lines))
        return str(path)


def run(phase: Phase, folder: Path) -> dict[str, Any]:
    """Deploy, check, measure, stop."""
    start_ray(phase.ingress, folder, num_cpus=16)
    config = services(phase)
    ray_serve.start(proxy_location="HeadOnly", http_options=config["http_options"])
    service = Serve(None)
    service.apply(config)
    service.wait_running([application["name"] for application in config["applications"]], START_S)
    measurement = Measurement(phase, folder)
    try:
        difference = check(measurement)
        threads = measure_all(measurement)
        routed = routing(measurement) if phase.replicas > 1 else {}
    finally:
        ray_serve.shutdown()
        ray.shutdown()
    return {
        "phase": asdict(phase),
        "difference": difference,
        "threads": threads,
        "routed": routed,
        "pairs": pairs(measurement.world) if phase.rivals else {},
        "rows": measurement.rows,
    }


def pairs(world: World) -> dict[int, tuple[float, float]]:
    """By length: distinct (item, query) of a planted history, and of a household that grew on so far."""
    return {length: (count, world.grown_pairs(length)) for length, count in world.planted_pairs().items()}


def services(phase: Phase) -> dict[str, Any]:
    """A declarative config of all services with the same proxy and limits."""
    folder, name = Path(phase.history), f"keys-{phase.ingress}-{phase.topology}-{phase.replicas}"
    serving = ServeConfig(
        port=phase.port,
        topology=phase.topology,
        ingress=phase.ingress,
        history=folder / "lmdb",
        keys=folder / name,
        recommend=False,
    )
    settings = Settings(workdir=Path(phase.workdir), serve=serving)
    bundle = World.open(Path(phase.workdir)).bundle
    config = config_of(settings, bundle.version)
    (application,) = config["applications"]
    alike = ("max_ongoing_requests", "max_queued_requests", "backpressure_config", "request_router_config")
    limits = {key: value for key, value in application["deployments"][0].items() if key in alike}
    for deployment in application["deployments"]:
        deployment.pop("autoscaling_config")
        deployment |= {"num_replicas": phase.replicas, "ray_actor_options": {"num_cpus": 0.1}}
    runtime_env = {"working_dir": f"local://{REPOSITORY}"}
    application |= {"name": "seminar", "route_prefix": "/seminar", "runtime_env": runtime_env}
    others = [("Trivial", {})]
    if phase.rivals:
        others.append(("Rival", {"bundle": str(bundle.path), "history": str(Path(phase.history) / "lmdb")}))
    for deployment, args in others:
        name = deployment.lower()
        # The rival is one process that chooses between threads and requests at once (`best_threads`).
        replicas = 1 if deployment == "Rival" else phase.replicas
        own = {"name": deployment, "num_replicas": replicas, "ray_actor_options": {"num_cpus": 0.1}, **limits}
        config["applications"].append(
            {
                "name": name,
                "route_prefix": f"/{name}",
                "import_path": f"benchmarks.serve_rivals:build_{name}",
                "args": args,
                "deployments": [own],
                "runtime_env": runtime_env,
            }
        )
    return config


def check(measurement: Measurement, users: int = 12) -> float:
    """Largest difference of served scores to the offline scorer's, over some users; also of a planted one."""
    world = measurement.world
    bundle = Bundle.load(world.bundle.path)
    moment = world.later_ms()
    worst = 0.0
    for histories, names in ((world.real, measurement.warm[:users]), (world.planted(), [planted_user(n, 0) for n in PLANTED])):
        for line in world.bodies(names, len(names), seed=3, time_ms=moment):
            body = json.loads(line.split("\t", 1)[1])
            served = np.array(_post(measurement.phase.port, "/seminar/v1/score", body)["scores"])
            worst = max(worst, float(np.abs(served - offline(world, bundle, histories, body)).max()))
    return worst


def measure_all(measurement: Measurement) -> dict[str, dict[str, Setting]]:
    """Every block; which thread setting was the best for each rival at each length."""
    phase, measure = measurement.phase, measurement.measure
    measure("seminar", "cold", "cold", concurrency=1, once=True, seconds=60)
    measure("seminar", "warming", "once", concurrency=4, once=True, seconds=60)
    threads = best_threads(measurement) if phase.rivals else {}
    for round_, concurrency in itertools.product(range(phase.rounds), CLOSED):
        for service in ("trivial", "seminar", *threads):
            set_threads(phase, threads.get(service, {}).get(str(min(PLANTED))))
            file = "trivial" if service == "trivial" else "warm"
            measure(service, f"closed {concurrency}", file, concurrency=concurrency, seed=round_)
    for round_, length in itertools.product(range(phase.rounds if phase.rivals else 0), PLANTED):
        for service in ("seminar", *threads):
            set_threads(phase, threads.get(service, {}).get(str(length)))
            measure(service, f"length {length}", str(length), concurrency=LONG_CONCURRENCY, seed=round_)
    if phase.open_loop:
        peak = requests_a_second(measurement.rows, "seminar", "closed 32")
        for share in OPEN:
            measure("seminar", f"open {share:g}", "warm", rate=share * peak, seconds=2 * phase.seconds)
        measure("seminar", "overload", "warm", rate=OVERLOAD * peak, seconds=2 * phase.seconds)
        measure("seminar", "after overload", "warm", concurrency=32)
    return threads


def routing(measurement: Measurement) -> dict[str, dict[str, float]]:
    """With the header and without: requests that reach their user's usual replica, and hits of the replicas' user caches when
    new users ask four times each."""
    port, found = measurement.phase.port, {}
    for name in HEADERS:
        before = cache_counts(port)
        measurement.measure("seminar", name, name, concurrency=4, once=True, seconds=60, session=name == HEADERS[0])
        hits, misses = (after - count for after, count in zip(cache_counts(port), before, strict=True))
        found[name] = {"usual replica": stickiness(port, header=name == HEADERS[0]), "cache hits": hits / max(hits + misses, 1)}
    return found


def best_threads(measurement: Measurement) -> dict[str, dict[str, Setting]]:
    """The thread setting with the most requests a second, a rival and a length."""
    best: dict[str, dict[str, Setting]] = {}
    for rival, length in itertools.product(RIVALS, map(str, PLANTED)):
        measurement.measure(rival, "warming", length, concurrency=2, seconds=1)
        speed = {}
        for setting in THREADS:
            set_threads(measurement.phase, setting)
            result = measurement.measure(rival, "threads", length, concurrency=LONG_CONCURRENCY)
            speed[setting] = result["good"] / result["seconds"]
        best.setdefault(rival, {})[length] = max(speed, key=speed.__getitem__)
    return best


def set_threads(phase: Phase, setting: Setting | None) -> None:
    """Threads of torch and requests at once of the rival."""
    if setting is not None:
        threads, workers = setting
        with urllib.request.urlopen(f"http://{HOST}:{phase.port}/rival/threads/{threads}/{workers}", timeout=60) as answer:
            answer.read()


def requests_a_second(rows: Sequence[dict[str, Any]], service: str, block: str) -> float:
    """Mean over the rounds."""
    found = [row for row in rows if (row["service"], row["block"]) == (service, block)]
    return sum(row["good"] for row in found) / sum(row["seconds"] for row in found)


def _post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(body).encode()
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", content, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def main() -> None:
    path = Path(sys.argv[1])
    phase = Phase(**json.loads(path.read_text()))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as folder:
        result = run(phase, Path(folder))
    path.with_suffix(".result.json").write_text(json.dumps({**result, "took_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
