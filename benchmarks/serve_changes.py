"""What does a change cost the users who ask meanwhile? Swap, rollback, scaling, a rolling upgrade, a killed replica.

    python -m benchmarks.serve_changes [--config configs/complete_journey.toml] [--workdir DIR] [--steady-s 20] [--threads 2]
                                          [--only-kill]

Serves the bundle in use of that config on this machine and swaps it with another bundle of the same work folder. Traffic never
stops; every answer is compared with the scores of the bundle that it names (`benchmarks/serve_traffic.py`). Steady traffic is
measured before the first change and after the last one, and the p99 of a change is held against the larger of both.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve

from benchmarks.common import Goal, publish, run
from benchmarks.serve_traffic import Answered, Ask, Traffic, asks_of, other_bundle, p99_ms
from seminar.artifacts import Store
from seminar.config import Settings, load_settings
from serve.deploy import APPLICATION, Serve, config_of, dashboard_of_session, served, swap
from serve.run import REPOSITORY
from workflows.runtime import absolute, ray_session

MOST_FACTOR = 3.0
SETTLE_S = 3.0
"""Counted to a change: what it leaves behind may slow requests after it."""
CHANGE_TIMEOUT_S = 180
SLOW_TARGETS = 1000


@dataclass(frozen=True)
class Changed:
    """One change: what happened to requests while it went on."""

    name: str
    took_s: float
    answered: list[Answered]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--steady-s", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause-ms", type=float, default=10)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--only-kill", action="store_true", help="the killed replica alone, published as serve_killed")
    own = parser.parse_args()
    settings = absolute(load_settings(own.config, {"workdir": str(own.workdir)} if own.workdir else None))
    store = Store(settings.workdir)
    bundles = other_bundle(store, own.config)
    asks = asks_of(settings, bundles, 100, 100)
    apart = min(float(np.abs(ask.scores[bundles[0].version] - ask.scores[bundles[1].version]).max()) for ask in asks)
    with tempfile.TemporaryDirectory() as folder, ray_session(settings.ray, dashboard=True):
        service = _Service(settings, Path(folder), bundles[0].version, own.replicas)
        if own.only_kill:
            killed = [*service.killed(asks, own)]
            serve.shutdown()
            publish("serve_killed", killed)
            return
        before = service.steady(asks, own)
        changes = [change for change in service.changes(asks, own, bundles[1].version)]
        killed = [*service.killed(asks, own)]
        after = service.steady(asks, own)
        serve.shutdown()
    publish("serve_changes", [*_rows(before, after, changes, apart), *killed])


def _rows(before: list[Answered], after: list[Answered], changes: Sequence[Changed], apart: float) -> Iterator[Goal]:
    steady = max(p99_ms(before), p99_ms(after))
    yield Goal("smallest distance of the two bundles' scores for one request", apart, "")
    for name, found in (("before", before), ("after", after)):
        yield Goal(f"steady traffic {name}: p99", p99_ms(found), "ms")
        yield Goal(f"  failed of {len(found):,}", float(_failed(found)), "", 0, at_least=False)
    for change in changes:
        versions = len({one.version for one in change.answered if one.version})
        yield Goal(f"{change.name}: failed of {len(change.answered):,}", float(_failed(change.answered)), "", 0, at_least=False)
        yield Goal("  p99 by steady p99", p99_ms(change.answered) / steady, "x", MOST_FACTOR, at_least=False)
        yield Goal("  took", change.took_s, "s")
        yield Goal("  bundles that answered", float(versions), "")


def _failed(answered: Sequence[Answered]) -> int:
    return sum(one.error is not None for one in answered)


class _Service:
    """The fused service with a fixed number of replicas over a history store of its own."""

    def __init__(self, settings: Settings, folder: Path, version: str, replicas: int) -> None:
        serving = settings.serve.model_copy(update={"history": folder / "history", "keys": folder / "keys", "recommend": False})
        self.settings = settings.model_copy(update={"serve": serving})
        self.url = f"http://{serving.host}:{serving.port}"
        self.replicas, self.version = replicas, version
        self._release = 1
        began = time.monotonic()
        config = self._config(replicas)
        serve.start(proxy_location=config["proxy_location"], http_options=config["http_options"])
        self.serve = Serve(dashboard_of_session())
        self._apply(replicas)
        self.start_s = time.monotonic() - began

    def steady(self, asks: Sequence[Ask], own: Any) -> list[Answered]:
        with self._traffic(asks, own) as warm:
            time.sleep(SETTLE_S)
        assert warm.answered
        with self._traffic(asks, own) as traffic:
            time.sleep(own.steady_s)
        return traffic.answered

    def changes(self, asks: Sequence[Ask], own: Any, other: str) -> Iterator[Changed]:
        """Each change under traffic of its own."""
        first = self.version
        steps: dict[str, Callable[[], Any]] = {
            "swap": lambda: self._swap(other),
            "rollback": lambda: self._swap(first),
            "swap again": lambda: self._swap(other),
            "rollback again": lambda: self._swap(first),
            f"scale {self.replicas} -> {self.replicas + 1}": lambda: self._apply(self.replicas + 1),
            f"scale {self.replicas + 1} -> {self.replicas}": lambda: self._apply(self.replicas),
            "rolling upgrade of the code": self._upgrade,
        }
        for name, step in steps.items():
            with self._traffic(asks, own) as traffic:
                time.sleep(1)
                began = time.monotonic()
                step()
                ended = time.monotonic()
                time.sleep(SETTLE_S)
            print(f"{name}: {ended - began:.1f} s, {len(traffic.answered):,} requests", flush=True)
            for error in sorted({one.error for one in traffic.answered if one.error})[:5]:
                print(f"  {error}", flush=True)
            yield Changed(name, ended - began, traffic.between(began, ended + SETTLE_S))

    def killed(self, asks: Sequence[Ask], own: Any) -> Iterator[Goal]:
        """kill -9 of a replica with slow requests in flight, raw ones and, beside them, such of the client library."""
        slow = [_slow(ask) for ask in asks[:8]]
        patient = [Traffic(self.url, some, 2, own.pause_ms / 1e3, library=True) for some in (asks, slow)]
        with self._traffic(asks, own) as traffic, Traffic(self.url, slow, threads=2) as heavy, patient[0], patient[1]:
            time.sleep(2)
            began, back = self._kill_one()
            time.sleep(SETTLE_S)
        found = [*traffic.between(began, back), *heavy.between(began, back)]
        in_flight = [one for one in (*traffic.answered, *heavy.answered) if one.sent_s < began < one.sent_s + one.took_s]
        failed = [one for one in found if one.error]
        others = [one for one in failed if not one.sent_s < began < one.sent_s + one.took_s]
        health_s = float(self._config(1)["applications"][0]["deployments"][0]["health_check_period_s"])
        yield Goal(f"kill -9 of a replica: failed of {len(in_flight)} in flight", float(len(failed) - len(others)), "")
        yield Goal(f"  failed of {len(found) - len(in_flight):,} others", float(len(others)), "", 0, at_least=False)
        kept = [one for some in patient for one in some.between(began, back)]
        lost = [one for one in kept if one.error]
        caught = sum(one.sent_s < began < one.sent_s + one.took_s for one in kept)
        name = f"  failed with the client library, of {len(kept):,}, {caught} of them in flight"
        yield Goal(name, float(len(lost)), "", 0, at_least=False)
        yield Goal("  full capacity after", back - began, "s", health_s + self.start_s, at_least=False)
        for error in sorted({one.error for one in (*failed, *lost) if one.error})[:5]:
            print(f"  {error}", flush=True)

    def _kill_one(self) -> tuple[float, float]:
        """When a replica was killed, and when as many others as before answered again."""
        old = {state["replica"]: state["pid"] for state in served(self.url)["replicas"]}
        began = time.monotonic()
        os.kill(next(iter(old.values())), signal.SIGKILL)
        while time.monotonic() < began + CHANGE_TIMEOUT_S:
            time.sleep(0.2)
            try:
                states = served(self.url)["replicas"]
            except Exception:  # asked of the replica that died
                continue
            if len(states) == len(old) and next(iter(old)) not in {state["replica"] for state in states}:
                return began, time.monotonic()
        raise RuntimeError(f"no new replica in {CHANGE_TIMEOUT_S} s")

    def _traffic(self, asks: Sequence[Ask], own: Any) -> Traffic:
        return Traffic(self.url, asks, own.threads, own.pause_ms / 1e3)

    def _swap(self, version: str) -> None:
        swap(self.serve.dashboard, self.url, version)
        self.version = version

    def _upgrade(self) -> None:
        self._release += 1
        self._apply(self.replicas)

    def _apply(self, replicas: int) -> None:
        """Deploy, and wait until exactly so many replicas of the newest release answer."""
        self.serve.apply(self._config(replicas))
        deadline = time.monotonic() + CHANGE_TIMEOUT_S
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if self.serve.runs([APPLICATION]) and len(served(self.url)["replicas"]) == replicas:
                return
        raise RuntimeError(f"not {replicas} replicas in {CHANGE_TIMEOUT_S} s")

    def _config(self, replicas: int) -> dict[str, Any]:
        config = config_of(self.settings, self.version)
        (application,) = config["applications"]
        application["runtime_env"] = {
            "working_dir": f"local://{REPOSITORY}",
            "env_vars": {"SEMINAR_RELEASE": str(self._release), "OMP_NUM_THREADS": "1"},
        }
        for deployment in application["deployments"]:
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = replicas
            deployment["ray_actor_options"] = {"num_cpus": 0.1}
        return config


def _slow(ask: Ask) -> Ask:
    """The same request with its targets repeated to as many as the service takes."""
    times = SLOW_TARGETS // len(ask.body["targets"])
    scores = {version: np.tile(one, times) for version, one in ask.scores.items()}
    return Ask({**ask.body, "targets": ask.body["targets"] * times}, scores)


if __name__ == "__main__":
    run(main)
