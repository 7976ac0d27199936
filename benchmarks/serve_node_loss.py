"""A host of three dies while users ask and behaviours arrive: does the service answer, and is every acknowledged event kept?

    python -m benchmarks.serve_node_loss [--config configs/complete_journey.toml] [--workdir DIR] [--events 100000] [--silent]

Four hosts on this machine (`benchmarks/hosts.py`): a Redis that keeps the histories, and three Ray nodes with one ingress replica
and one HAProxy each. When half of the events are acknowledged all processes of one node are killed with SIGKILL; with --silent
its network is cut first, so that its peers see silence and not closed connections, as when a host loses power. Clients know the
three addresses, as a load balancer would, and go to the next one when one fails; an event is sent again with the same event_id
until somebody acknowledges it. At the end the store is read, and every acknowledged event must be there exactly once.
Needs Linux, root, iproute2 and redis-server.
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, publish, run
from benchmarks.hosts import Hosts
from benchmarks.serve_hosts import SERVE_PORT, Machines, wait
from benchmarks.serve_traffic import Ask, asks_of
from seminar.artifacts import Store
from seminar.config import load_settings
from serve.options import Options
from workflows.runtime import absolute

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
    parser.add_argument("--silent", action="store_true")
    own = parser.parse_args()
    settings = absolute(load_settings(own.config, {"workdir": str(own.workdir)} if own.workdir else None))
    asks = asks_of(settings, [Store(settings.workdir).open("bundle")], 50, 100)
    with tempfile.TemporaryDirectory() as folder, Hosts(4) as (keeper, head, *others):
        machines = Machines(Path(folder), keeper, [head, *others])
        url = machines.start_store()
        machines.start_ray()
        serving = settings.serve.model_copy(update={"history_url": url, "recommend": False, "keys": Path(folder) / "keys"})
        machines.deploy(settings.model_copy(update={"serve": serving}))
        clients = Clients([host.address for host in machines.nodes], asks, own.events)
        threads = clients.start(own.writers, own.readers)
        wait(lambda: clients.count >= own.events // 2, 1200, "half of the events")
        killed_s = time.monotonic()
        processes = machines.lose(machines.nodes[-1], silent=own.silent)
        for thread in threads[: own.writers]:
            thread.join(1800)
        clients.done.set()
        rows = list(_rows(clients, url, killed_s, processes))
    publish("serve_node_loss_silent" if own.silent else "serve_node_loss", rows)


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


if __name__ == "__main__":
    run(main)
