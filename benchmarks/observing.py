"""What does it cost to observe a request? On its path, in the thread that tells Ray, and as a share of a score of 100 targets.

    python -m benchmarks.observing [--config configs/complete_journey.toml] [--workdir DIR] [--users 100] [--targets 100]

One process, the bundle in use, real users and their histories; requests go in turns through an engine that observes and one
that does not, over one history store in a temporary folder. Online recall is left out of the path's share (it runs in a thread of
the lowest priority) and measured apart.
"""

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Goal, publish, run
from seminar.client import api
from seminar.config import RayConfig, load_settings
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from seminar.scoring import Searched
from serve.engine import Engine
from serve.metric_table import COMMON
from serve.metrics import RayMetrics
from serve.observe import Answered, Record, Silent
from serve.online_recall import Search, approximate, recall_of
from serve.options import Options
from serve.stages import LocalStages
from serve.watch import Watch
from serve.watched import Watched
from workflows.runtime import ray_session

REPEATS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--targets", type=int, default=100)
    own = parser.parse_args()
    workdir = own.workdir or load_settings(own.config).workdir
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ray_session(RayConfig(address="local", num_cpus=1)):
        history, keys = Path(folder) / "history", Path(folder) / "keys"
        options = Options(workdir=str(workdir.resolve()), history=str(history), keys=str(keys), recommend=False, recall_sample=0)
        publish("observing", asyncio.run(measured(options, own.users, own.targets)))


async def measured(options: Options, users: int, targets: int) -> list[Goal]:
    """Rows of the table."""
    store, sink = options.open_history(), RayMetrics(dict.fromkeys(COMMON, "benchmark"))
    seen = Seen(sink, options, logging.getLogger("observing"))
    plain = Engine(options, store, LocalStages())
    observed = Engine(options, store, LocalStages(seen), observer=seen)
    for engine in (plain, observed):
        await engine.take("current")
    requests = _requests(plain, users, targets)
    for request in requests:
        await plain.score(request)
    took_us: dict[str, list[float]] = {"plain": [], "observed": []}
    for request in requests * 3:
        for name, engine in (("plain", plain), ("observed", observed)):
            began = time.perf_counter()
            await engine.score(request)
            took_us[name].append(1e6 * (time.perf_counter() - began))
    score_us = float(np.median(took_us["plain"]))
    seen.close()
    path_us, telling_us = costs(seen, sink, options)
    path_us += await layer_us()
    repeated = [search for search in seen.searches if approximate(search.found)][:20]
    recall_ms = float(np.median([_ms(lambda search=search: recall_of(search)) for search in repeated]))
    return [
        Goal(f"score of {targets} targets, unobserved, p50", score_us, "us"),
        Goal("the same with an observer, in turns, p50", float(np.median(took_us["observed"])), "us"),
        Goal("observing, on the request's path", path_us, "us/request"),
        Goal("observing, in the thread that tells Ray (CPU)", telling_us, "us/request"),
        Goal("both by the score", 100 * (path_us + telling_us) / score_us, "%", 5, at_least=False),
        Goal("repeating a search exactly for 8 targets (1 request in 100)", recall_ms, "ms"),
    ]


class Seen(Watch):
    """Keeps what it is told of answers and searches too."""

    def __init__(self, sink: RayMetrics, options: Options, logger: logging.Logger) -> None:
        self.answers: list[Answered] = []
        self.searches: list[Search] = []
        super().__init__(sink, options, logger)

    def answered(self, answered: Answered) -> None:
        self.answers.append(answered)
        super().answered(answered)

    def retrieved(self, scorer: TwoStageScorer, history: ScoringHistory, targets: Targets, found: Searched) -> None:
        self.searches.append(Search(scorer, history, targets, found))
        super().retrieved(scorer, history, targets, found)


def costs(seen: Seen, sink: RayMetrics, options: Options) -> tuple[float, float]:
    """Microseconds a request on its path, and of CPU in the thread that tells Ray."""
    # Told by hand below: its own thread must take nothing of the path's time.
    watch = Watch(sink, options, logging.getLogger("observing"), period_s=3600)
    watch.offered(seen.answers[0].bundle_version, 0.0, None)
    answered, search = seen.answers[0], seen.searches[0]

    def request() -> None:
        record = Record("benchmark", "POST", "/v1/score", 200, 10.0)
        watch.began()
        watch.retrieved(search.scorer, search.history, search.targets, search.found)
        watch.answered(answered)
        watch.ended(record)

    path_us, telling_us = [], []
    for _ in range(5):
        path_us.append(1000 * _ms(lambda: [request() for _ in range(REPEATS)]) / REPEATS)
        began = time.thread_time()
        watch.flush()
        telling_us.append(1e6 * (time.thread_time() - began) / REPEATS)
    watch.close()
    return min(path_us), min(telling_us)


async def layer_us() -> float:
    """Microseconds of the layer around the application: request id, record, status, time."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def nothing(message: Any = None) -> Any:
        return message

    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": [(b"x-request-id", b"benchmark")]}
    silent = Silent()
    took_us: dict[bool, list[float]] = {}
    for _ in range(5):
        for app in (answer, Watched(answer, lambda: silent)):
            began = time.perf_counter()
            for _ in range(REPEATS):
                await app(dict(scope), nothing, nothing)
            took_us.setdefault(app is answer, []).append(1e6 * (time.perf_counter() - began) / REPEATS)
    return min(took_us[False]) - min(took_us[True])


def _requests(engine: Engine, users: int, targets: int) -> list[api.ScoreRequest]:
    draw, bundle = np.random.default_rng(0), engine.live.bundle
    page = engine.store.users("", 100_000)
    names = [page[i].user_id for i in draw.choice(len(page), min(users, len(page)), replace=False)]
    return [
        api.ScoreRequest(
            user_id=name,
            targets=[api.Target(item_id=bundle.item_ids[row]) for row in draw.choice(len(bundle.item_ids), targets)],
        )
        for name in names
    ]


def _ms(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    run(main)
