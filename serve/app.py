"""Ray Serve deployments: `build` makes the application that a YAML names, in one of two topologies with the same scorer.

    fused    Ingress: HTTP, histories, GSU and ESU in one replica; a handle hop costs 3 ms, so this is the default on CPU
    split    Ingress -> GSU -> ESU, each scaled apart; the GSU's answer goes to the ESU directly

A swap is a changed `user_config` (`offers.py`): a replica loads the bundle beside the one in use, then switches. Under `split`
a request names the bundle it began with, stages hold the last two, and the ingress switches when all stages hold the new one.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from seminar.errors import SeminarError
from seminar.scorer import Retrieved, ScoringHistory, Targets, TwoStageScorer
from serve import api
from serve.engine import Engine, LocalStages, StageResult, timed
from serve.offers import Offers
from serve.options import Options
from serve.problems import Refused
from serve.routes import create_app
from serve.rows import Live

HELD = 2
"""Bundles a stage keeps: the one in use and the one that requests in flight began with."""
BROADCAST_TIMEOUT_S = 60.0
RETRY_S = 0.05


def build(args: dict[str, Any]) -> Application:
    """The application of `args` (see `Options`); deployments are named Ingress and, under `split`, GSU and ESU."""
    options = Options.parse(args)
    bundle = {"bundle": "current"}
    ingress = serve.deployment(name="Ingress", user_config=bundle)(serve.ingress(make_asgi_app)(Ingress))
    if options.topology == "fused":
        return ingress.bind(args)
    gsu, esu = (serve.deployment(name=name, user_config=bundle)(Stage) for name in ("GSU", "ESU"))
    return ingress.bind(args, gsu.bind(args), esu.bind(args))


def make_asgi_app() -> FastAPI:
    """Made on the replica; the routes find its Ingress when a request comes."""
    return create_app(_this_ingress)


def _this_ingress() -> "Ingress":
    ingress = serve.get_replica_context().servable_object
    assert isinstance(ingress, Ingress)
    return ingress


class Ingress:
    """HTTP, histories and, without stages of their own, both stages."""

    def __init__(self, args: dict[str, Any], gsu: DeploymentHandle | None = None, esu: DeploymentHandle | None = None) -> None:
        torch.set_num_threads(1)
        options = Options.parse(args)
        stages = LocalStages() if gsu is None or esu is None else RemoteStages(gsu, esu)
        self.engine = Engine(options, options.open_history(), stages)
        self._stages = [handle for handle in (gsu, esu) if handle is not None]

    async def reconfigure(self, user_config: Any) -> None:
        """Swap to the bundle that `user_config` names; a bad one is refused, and GET /v1/bundle says why."""
        await self.engine.offers.reconfigure(user_config)

    def check_health(self) -> None:
        """The store answers and a bundle is loaded."""
        self.engine.describe([])

    async def state(self) -> api.ReplicaState:
        return _state(self.engine.live.bundle.version, self.engine.offers)

    async def replicas(self) -> Sequence[api.ReplicaState]:
        """State of every running replica of the application."""
        context = serve.get_replica_context()
        own = serve.get_deployment_handle(context.deployment, context.app_name)
        answers = await asyncio.gather(*(_broadcast(handle, "state") for handle in (own, *self._stages)))
        return sorted((state for answer in answers for state in answer), key=lambda state: (state.deployment, state.replica))


class RemoteStages:
    """GSU and ESU behind their own services."""

    def __init__(self, gsu: DeploymentHandle, esu: DeploymentHandle) -> None:
        self._gsu, self._esu = gsu, esu

    async def score(self, live: Live, history: ScoringHistory, targets: Targets, explain: bool) -> StageResult:
        folder = str(live.bundle.path)
        try:
            retrieved = self._gsu.retrieve.remote(folder, history, targets)
            return await self._esu.rank.remote(folder, targets, retrieved, explain)
        except (BackPressureError, DeploymentUnavailableError) as error:
            full = isinstance(error, BackPressureError)
            got, expected = ("a full queue", "room") if full else ("no healthy replica", "at least one")
            fix = "retry in a moment, or raise max_replicas" if full else "retry in a moment, or look at `serve status`"
            raise Refused(503, api.Problem(what="GSU or ESU", got=got, expected=expected, fix=fix)) from error
        except RayTaskError as error:
            # Ray's own words are a traceback; a client gets the sentence of the error inside.
            if isinstance(error.cause, SeminarError):
                raise error.cause from error
            raise

    async def hold(self, folder: Path) -> None:
        """All replicas of both stages load the bundle; whatever one of them refuses is raised here."""
        await asyncio.gather(*(_broadcast(handle, "hold", str(folder)) for handle in (self._gsu, self._esu)))


async def _broadcast(handle: DeploymentHandle, method: str, *args: Any) -> list[Any]:
    """Every running replica's answer. A deployment has none for the moment in which its only replica takes a new config."""
    deadline = time.monotonic() + BROADCAST_TIMEOUT_S
    while True:
        try:
            return await handle.broadcast(method, *args).results_async(timeout_s=BROADCAST_TIMEOUT_S)
        except DeploymentUnavailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)


class Stage:
    """One stage of the scorer, GSU or ESU by the method that is called. Loads what it is asked for and does not hold yet."""

    def __init__(self, args: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._options = Options.parse(args)
        self._thread = ThreadPoolExecutor(1, "score")
        self._held: OrderedDict[str, TwoStageScorer] = OrderedDict()
        self._loading = asyncio.Lock()
        self._offered: str | None = None
        self._offers = Offers(self._take)

    async def reconfigure(self, user_config: Any) -> None:
        """Hold the bundle that `user_config` names; a bad one is refused, and GET /v1/bundle says why."""
        await self._offers.reconfigure(user_config)

    async def hold(self, folder: str) -> None:
        await self._scorer(folder)

    async def retrieve(self, folder: str, history: ScoringHistory, targets: Targets) -> tuple[Retrieved, float]:
        """GSU, and the milliseconds it took."""
        scorer = await self._scorer(folder)
        return await self._run(timed, scorer.retrieve, history, targets)

    async def rank(self, folder: str, targets: Targets, retrieved: tuple[Retrieved, float], explain: bool) -> StageResult:
        """ESU and heads over what the GSU kept."""
        scorer = await self._scorer(folder)
        scored, rank_ms = await self._run(lambda: timed(scorer.rank, targets, retrieved[0], explain=explain))
        return StageResult(scored, retrieved[1], rank_ms)

    async def state(self) -> api.ReplicaState:
        return _state(self._held[self._offered].bundle.version if self._offered in self._held else None, self._offers)

    async def _take(self, reference: str) -> None:
        folder = str(self._options.bundle_folder(reference))
        await self.hold(folder)
        self._offered = folder

    async def _scorer(self, folder: str) -> TwoStageScorer:
        if folder not in self._held:
            async with self._loading:
                if folder not in self._held:
                    # Not on the scoring thread: requests go on while it loads.
                    self._held[folder] = await asyncio.to_thread(self._options.load_scorer, Path(folder))
                    while len(self._held) > HELD:
                        self._held.popitem(last=False)
        self._held.move_to_end(folder)
        return self._held[folder]

    async def _run(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def _state(version: str | None, offers: Offers) -> api.ReplicaState:
    context = serve.get_replica_context()
    return api.ReplicaState(
        deployment=context.deployment,
        replica=context.replica_tag,
        pid=os.getpid(),
        bundle_version=version,
        loading=offers.loading,
        refused=offers.refused,
    )
