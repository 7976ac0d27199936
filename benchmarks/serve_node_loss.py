"""A host of three dies while users ask and behaviours arrive: does the service answer, and is every acknowledged event kept?

    python -m benchmarks.serve_node_loss [--config configs/complete_journey.toml] [--workdir DIR] [--events 100000]

Four hosts on this machine (`benchmarks/hosts.py`): a Redis that keeps the histories, and three Ray nodes with one ingress replica
and one proxy each. When half of the events are acknowledged one node's network is cut, so that its peers see silence, not closed
connections, and all its processes are killed with SIGKILL. Clients know the three addresses, as a load balancer would, and go to
the next one when one fails; an event is sent again with the same event_id until somebody acknowledges it. At the end the store
is read, and every acknowledged event must be there exactly once. Needs Linux, root, iproute2 and redis-server.
"""

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from benchmarks.common import Goal, publish, run
from benchmarks.hosts import Host, Hosts
from benchmarks.serve_traffic import Ask, asks_of
from seminar.artifacts import Store
from seminar.config import load_settings
from seminar.errors import SeminarError, explain
from serve.deploy import config_of
from serve.options import Options
from serve.run import REPOSITORY
from workflows.runtime import absolute

REDIS_PORT, GCS_PORT, DASHBOARD_PORT, SERVE_PORT = 6400, 6401, 8265, 8000
START_S = 180
BATCH = 50
NOW_MS = 1_700_000_000_000
TIMEOUT_S = 5.0
"""A client that waits longer for a host that is gone asks the next one too late."""


@dataclass
class Clients:
    """Threads that append and threads that ask, over all addresses."""

    addresses: Sequence[str]
    asks: Sequence[Ask]
    events: int
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    answered_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    retried: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.done = threading.Event()
        self._lock = threading.Lock()

    def start(self, writers: int, readers: int) -> list[threading.Thread]:
        threads = [self._thread(self._write, i, self.events // writers) for i in range(writers)]
        threads += [self._thread(self._ask, i) for i in range(readers)]
        for thread in threads:
            thread.start()
        return threads

    @property
    def count(self) -> int:
        with self._lock:
            return sum(len(ids) for ids in self.acknowledged.values())

    def _thread(self, work: Callable[..., None], *args: int) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*args)
            except RuntimeError as error:
                self.failed.append(str(error))

        return threading.Thread(target=guarded, daemon=True)

    def _write(self, number: int, count: int) -> None:
        caller = _Caller(self.addresses, number, self.retried)
        for start in range(0, count, BATCH):
            user = f"writer-{number}-{start // BATCH % 20}"
            ids = [f"event-{number}-{i}" for i in range(start, min(start + BATCH, count))]
            # The item is the event's own, so what the store holds says which events it has.
            events = [{"item_id": one, "time_ms": NOW_MS + start + i, "event_id": one} for i, one in enumerate(ids)]
            caller.post("/v1/events", {"user_id": user, "events": events}, user)
            with self._lock:
                self.acknowledged.setdefault(user, []).extend(ids)

    def _ask(self, number: int) -> None:
        caller = _Caller(self.addresses, number, self.retried)
        while not self.done.is_set():
            ask = self.asks[(number + len(self.answered_s)) % len(self.asks)]
            told = caller.post("/v1/score", ask.body, ask.body["user_id"])
            expected = ask.scores.get(told["bundle_version"])
            if expected is None or max(abs(expected - told["scores"])) > 1e-4:
                self.wrong.append(f"user {ask.body['user_id']}: other scores than bundle {told['bundle_version']}'s")
            self.answered_s.append(time.monotonic())
            time.sleep(0.02)


class _Caller:
    """One connection that moves to the next address when a request fails; gives up after two minutes."""

    def __init__(self, addresses: Sequence[str], number: int, retried: Counter[str]) -> None:
        self._addresses, self._at, self._retried = addresses, number, retried
        self._connection: http.client.HTTPConnection | None = None

    def post(self, path: str, body: dict[str, Any], user: str) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while True:
            problem = ""
            try:
                self._connection = self._connection or self._connect()
                headers = {"content-type": "application/json", "x-session-id": user}
                self._connection.request("POST", path, json.dumps(body), headers)
                response = self._connection.getresponse()
                content = response.read()
                if response.status == 200:
                    return json.loads(content)
                problem = f"{path} status {response.status}"
                if response.status < 500:
                    raise RuntimeError(f"{problem}: {content[:300].decode(errors='replace')}")
            except (OSError, http.client.HTTPException) as error:
                problem = f"{path} {type(error).__name__}"
            if time.monotonic() > deadline:
                raise RuntimeError(f"no answer in two minutes; last: {problem}")
            self._retried[problem] += 1
            self._connection, self._at = None, self._at + 1
            time.sleep(0.05)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._addresses[self._at % len(self._addresses)], SERVE_PORT, timeout=TIMEOUT_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--readers", type=int, default=2)
    own = parser.parse_args()
    settings = absolute(load_settings(own.config, {"workdir": str(own.workdir)} if own.workdir else None))
    asks = asks_of(settings, [Store(settings.workdir).open("bundle")], 50, 100)
    with tempfile.TemporaryDirectory() as folder, Hosts(4) as (keeper, head, *others):
        machines = _Machines(Path(folder), keeper, [head, *others])
        url = machines.start_store()
        machines.start_ray()
        serving = settings.serve.model_copy(update={"history_url": url, "recommend": False, "keys": Path(folder) / "keys"})
        machines.deploy(settings.model_copy(update={"serve": serving}))
        clients = Clients([host.address for host in machines.nodes], asks, own.events)
        threads = clients.start(own.writers, own.readers)
        _wait(lambda: clients.count >= own.events // 2, 1200, "half of the events")
        killed_s = time.monotonic()
        processes = machines.lose(machines.nodes[-1])
        for thread in threads[: own.writers]:
            thread.join(1800)
        clients.done.set()
        rows = list(_rows(clients, url, killed_s, processes))
    publish("serve_node_loss", rows)


def _rows(clients: Clients, url: str, killed_s: float, processes: int) -> Iterator[Goal]:
    store = Options.parse({"workdir": "unused", "history_url": url}).open_history()
    lost = doubled = 0
    for user, ids in clients.acknowledged.items():
        found = Counter(store.names_of("items", store.read(user).item_L))
        lost += sum(found[one] == 0 for one in ids)
        doubled += sum(count > 1 for count in found.values())
    store.close()
    answered = clients.answered_s
    gaps = [b - a for a, b in zip(sorted(answered), sorted(answered)[1:], strict=False)]
    after = sum(one > killed_s for one in answered)
    yield Goal("events acknowledged", float(clients.count), "", 100_000)
    yield Goal(f"  lost after kill -9 of {processes} processes of one host of three", float(lost), "", 0, at_least=False)
    yield Goal("  stored twice", float(doubled), "", 0, at_least=False)
    yield Goal("requests never answered, by any host in two minutes", float(len(clients.failed)), "", 0, at_least=False)
    yield Goal("score requests answered", float(len(answered)), "")
    yield Goal("  of them after the kill", float(after), "")
    yield Goal("  answered with wrong scores", float(len(clients.wrong)), "", 0, at_least=False)
    yield Goal("  longest time without any answer, all readers together", max(gaps), "s", TIMEOUT_S + 1, at_least=False)
    for problem, count in clients.retried.most_common():
        yield Goal(f"  sent again after: {problem}", float(count), "")


class _Machines:
    """What runs where."""

    def __init__(self, folder: Path, keeper: Host, nodes: Sequence[Host]) -> None:
        self.folder, self.keeper, self.nodes = folder, keeper, nodes
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # The bridge ends at this machine, so Ray needs no token on it.
        self._environment = {**clean, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
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
        # Sockets have short names: a folder of their own right under /tmp.
        temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        first = [*common, "--head", f"--node-ip-address={head.address}", f"--port={GCS_PORT}", f"--temp-dir={temporary}"]
        first += ["--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
        self._start_node(head, first)
        self.dashboard = f"http://{head.address}:{DASHBOARD_PORT}"
        _wait(lambda: _answers(f"{self.dashboard}/api/version"), START_S, "the dashboard")
        for host in self.nodes[1:]:
            self._start_node(host, [*common, f"--address={head.address}:{GCS_PORT}", f"--node-ip-address={host.address}"])

    def _start_node(self, host: Host, command: list[str]) -> None:
        # Ray gives a node 30 s to register, which a busy machine can miss.
        log = self.folder / f"{host.name}.log"
        process = host.start(command, self._environment, log)

        def started() -> bool:
            nonlocal process
            if process.poll() is not None:
                process = host.start(command, self._environment, log)
            return "Ray runtime started." in log.read_text()

        _wait(started, START_S, f"Ray on {host.name}")

    def deploy(self, settings: Any) -> None:
        """One ingress replica and one proxy a host."""
        config = config_of(settings, Store(settings.workdir).current("bundle"))
        config["proxy_location"] = "EveryNode"
        config["http_options"] |= {"host": "0.0.0.0", "port": SERVE_PORT}
        (application,) = config["applications"]
        application["runtime_env"] = {"working_dir": f"local://{REPOSITORY}", "env_vars": {"OMP_NUM_THREADS": "1"}}
        (ingress,) = application["deployments"]
        del ingress["autoscaling_config"]
        ingress |= {"num_replicas": len(self.nodes), "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 1}}
        _wait(lambda: _deployed(self.dashboard, config), START_S, "the dashboard's Serve")
        client = ServeSubmissionClient(self.dashboard)

        def running() -> bool:
            found = client.get_serve_details()["applications"]
            if any(one["status"] in ("DEPLOY_FAILED", "UNHEALTHY") for one in found.values()):
                raise SeminarError(explain("deploy", got=str(found)[:2000], expected="RUNNING", fix="see its message"))
            return bool(found) and all(one["status"] == "RUNNING" for one in found.values())

        _wait(running, 2 * START_S, "the service")
        urls = [f"http://{host.address}:{SERVE_PORT}/v1/health/ready" for host in self.nodes]
        _wait(lambda: all(_answers(url) for url in urls), START_S, "a proxy on every host")

    def lose(self, host: Host) -> int:
        """The host is gone from one moment to the next; how many processes it had."""
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


def _wait(until: Any, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not until():
        if time.monotonic() > deadline:
            raise SeminarError(explain(what, got=f"nothing in {timeout_s:.0f} s", expected="it", fix="look at the logs"))
        time.sleep(0.5)


if __name__ == "__main__":
    run(main)
