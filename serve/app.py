"""Ray Serve deployments: `build` makes the application that a YAML names, in one of two topologies with the same scorer.

    fused    Ingress: HTTP, histories, GSU and ESU in one replica; a handle hop costs 3 ms, so this is the default on CPU
    split    Ingress -> GSU -> ESU, each scaled apart; the GSU's answer goes to the ESU directly

Under both, /v1/recommend is Ingress -> Proposer -> the two stages; the Proposer is scaled apart too, `recommend: false` leaves it
out. A swap is a changed `user_config` (`offers.py`): a replica loads the bundle beside the one in use, then switches. A request
names the bundle it began with to every other deployment; those hold the last two, and the ingress switches when all replicas of
all of them hold the new one. So candidates and scores of one answer are of one bundle.
"""

import asyncio
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle

from seminar.artifacts import Artifact
from seminar.client import api
from seminar.client.scoring_pb2 import ScoreRequest, ScoreResponse
from seminar.errors import SeminarError
from seminar.scorer import Retrieved, ScoringHistory, Targets, TwoStageScorer
from serve import rpc
from serve.autoscaling import P95
from serve.engine import Engine
from serve.explain import rank
from serve.held import Held
from serve.ingress import require_guarded_way_in
from serve.latency import Latencies, Timed
from serve.metrics import watch_replica
from serve.observe import Observer, offering
from serve.offers import Offers
from serve.options import Options
from serve.problems import Refused
from serve.proposing import BundleProposer, Proposed, Wish
from serve.routes import create_app
from serve.rows import Live
from serve.spans import in_thread, timed
from serve.stages import LocalStages, StageResult

BROADCAST_TIMEOUT_S = 60.0
RETRY_S = 0.05
SWITCH_S = 0.0005
T = TypeVar("T")


def build(args: dict[str, Any]) -> Application:
    """The application of `args` (see `Options`): Ingress, with `recommend` Proposer, and under `split` GSU and ESU."""
    options = Options.parse(args)
    bundle = {"bundle": "current"}
    ingress = serve.deployment(name="Ingress", user_config=bundle)(serve.ingress(make_asgi_app)(Ingress))
    proposer = serve.deployment(name="Proposer", user_config=bundle)(Proposer).bind(args) if options.recommend else None
    if options.topology == "fused":
        return ingress.bind(args, proposer)
    gsu, esu = (serve.deployment(name=name, user_config=bundle)(Stage) for name in ("GSU", "ESU"))
    return ingress.bind(args, proposer, gsu.bind(args), esu.bind(args))


def make_asgi_app() -> FastAPI:
    """Made on the replica; the routes find its Ingress when a request comes."""
    app = create_app(_this_ingress)
    app.add_middleware(Timed, latencies=lambda: _this_ingress().latencies)
    return app


def _this_ingress() -> "Ingress":
    ingress = serve.get_replica_context().servable_object
    assert isinstance(ingress, Ingress)
    return ingress


class Ingress:
    """HTTP, histories and, without stages of their own, both stages. Without a proposer it only scores."""

    def __init__(
        self,
        args: dict[str, Any],
        proposer: DeploymentHandle | None,
        gsu: DeploymentHandle | None = None,
        esu: DeploymentHandle | None = None,
    ) -> None:
        torch.set_num_threads(1)
        # The event loop gets the interpreter back from the thread that scores within this time, not after Python's 5 ms.
        sys.setswitchinterval(SWITCH_S)
        options = Options.parse(args)
        require_guarded_way_in(options.token(), options.insecure)
        observer = watch_replica(options)
        stages = LocalStages(observer) if gsu is None or esu is None else RemoteStages(gsu, esu, observer)
        proposals = None if proposer is None else RemoteProposals(proposer, observer)
        self.engine = Engine(options, options.open_history(), stages, proposals, observer)
        observer.follow(self.engine.user_cache)
        self.latencies = Latencies()
        self._others = [handle for handle in (proposer, gsu, esu) if handle is not None]

    async def reconfigure(self, user_config: Any) -> None:
        """Swap to the bundle that `user_config` names; a bad one is refused, and GET /v1/bundle says why."""
        await self.engine.offers.reconfigure(user_config)

    def check_health(self) -> None:
        """A bundle is loaded. Not that the history store answers: no replica that is started again brings a server back."""
        self.engine.require_bundle()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands to `autoscaling.Policy`."""
        return {P95: self.latencies.p95_ms()}

    async def state(self) -> api.ReplicaState:
        cache = self.engine.user_cache
        state = _state(self.engine.live.bundle.version, self.engine.offers)
        return state.model_copy(update={"user_cache_hits": cache.hits, "user_cache_misses": cache.misses})

    async def Score(self, request: ScoreRequest, grpc_context: RayServegRPCContext) -> ScoreResponse:
        """What Serve calls for the gRPC interface."""
        with self.latencies.timed():
            return await rpc.score(self.engine, request, grpc_context)

    async def replicas(self) -> Sequence[api.ReplicaState]:
        """State of every running replica of the application."""
        context = serve.get_replica_context()
        own = serve.get_deployment_handle(context.deployment, context.app_name)
        answers = await asyncio.gather(*(_broadcast(handle, "state") for handle in (own, *self._others)))
        return sorted((state for answer in answers for state in answer), key=lambda state: (state.deployment, state.replica))


class RemoteStages:
    """GSU and ESU behind their own services."""

    def __init__(self, gsu: DeploymentHandle, esu: DeploymentHandle, observer: Observer) -> None:
        self._gsu, self._esu, self._observer = gsu, esu, observer

    here = None

    async def score(self, live: Live, history: ScoringHistory, targets: Targets, explain_top: int) -> StageResult:
        folder = str(live.bundle.path)
        with _in_our_words("GSU or ESU", self._observer):
            # To the replica that has this user's keys at hand (`request_router_config` in the YAML).
            retrieved = self._gsu.options(session_id=history.user_id or "").retrieve.remote(folder, history, targets)
            return await self._esu.rank.remote(folder, targets, retrieved, explain_top)

    async def hold(self, folder: Path, *, first: bool) -> None:
        await _hold((self._gsu, self._esu), folder, first)


class RemoteProposals:
    """The Proposer behind its own service."""

    def __init__(self, proposer: DeploymentHandle, observer: Observer) -> None:
        self._proposer, self._observer = proposer, observer

    async def propose(self, live: Live, wish: Wish) -> Proposed:
        with _in_our_words("Proposer", self._observer):
            return await self._proposer.propose.remote(str(live.bundle.path), wish)

    async def hold(self, folder: Path, *, first: bool) -> None:
        await _hold((self._proposer,), folder, first)


@contextmanager
def _in_our_words(what: str, observer: Observer) -> Iterator[None]:
    """Errors of a call to other deployments, as a client is told them."""
    try:
        yield
    except (BackPressureError, DeploymentUnavailableError) as error:
        observer.rejected(what)
        full = isinstance(error, BackPressureError)
        got, expected = ("a full queue", "room") if full else ("no healthy replica", "at least one")
        fix = "retry in a moment, or raise max_replicas" if full else "retry in a moment, or look at `serve status`"
        raise Refused(503, api.Problem(what=what, got=got, expected=expected, fix=fix)) from error
    except RayTaskError as error:
        # Ray's own words are a traceback; a client gets the sentence of the error inside.
        if isinstance(error.cause, SeminarError):
            raise error.cause from error
        raise


async def _hold(handles: Sequence[DeploymentHandle], folder: Path, first: bool) -> None:
    """All replicas load the bundle, the first one from their own `user_config`; whatever one of them refuses is raised here."""
    if not first:
        await asyncio.gather(*(_broadcast(handle, "hold", str(folder)) for handle in handles))


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


class Part(ABC, Generic[T]):
    """A deployment behind the ingress: holds a T of each of the newest bundles, and loads what a request names and it lacks."""

    def __init__(self, args: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._options = Options.parse(args)
        self._observer = watch_replica(self._options)
        self._thread = ThreadPoolExecutor(1, "work")
        self._held = Held(self._load)
        self._offered: str | None = None
        self._offers = Offers(self._take)
        self._latencies = Latencies()

    @abstractmethod
    def _load(self, folder: Path) -> T:
        """Load, check and warm up; raises if it must not be served."""

    @abstractmethod
    def _version(self, held: T) -> str: ...

    async def reconfigure(self, user_config: Any) -> None:
        """Hold the bundle that `user_config` names; a bad one is refused, and GET /v1/bundle says why."""
        await self._offers.reconfigure(user_config)

    async def hold(self, folder: str) -> None:
        await self._held.get(folder)

    async def state(self) -> api.ReplicaState:
        held = self._held.peek(self._offered)
        return _state(None if held is None else self._version(held), self._offers)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands to `autoscaling.Policy`."""
        return {P95: self._latencies.p95_ms()}

    async def _take(self, reference: str) -> None:
        with offering(self._observer, reference) as taken:
            folder = self._options.bundle_folder(reference)
            await self.hold(str(folder))
            self._offered = str(folder)
            taken(Artifact.at(folder).manifest)

    async def _timed(self, stage: str, function: Any, *args: Any) -> Any:
        """The result, one request at a time, and the milliseconds it took."""
        with self._latencies.timed():
            return await in_thread(self._thread, timed, stage, function, *args)


class Stage(Part[TwoStageScorer]):
    """One stage of the scorer, GSU or ESU by the method that is called."""

    async def retrieve(self, folder: str, history: ScoringHistory, targets: Targets) -> tuple[Retrieved, float]:
        """GSU, and the milliseconds it took."""
        scorer = await self._held.get(folder)
        retrieved, took_ms = await self._timed("retrieve", scorer.retrieve, history, targets)
        self._observer.retrieved(scorer, history, targets, retrieved)
        return retrieved, took_ms

    async def rank(self, folder: str, targets: Targets, retrieved: tuple[Retrieved, float], explain_top: int) -> StageResult:
        """ESU and heads over what the GSU kept."""
        scorer = await self._held.get(folder)
        scored, rank_ms = await self._timed("rank", rank, scorer, targets, retrieved[0], explain_top)
        return StageResult(scored, retrieved[1], rank_ms)

    def _load(self, folder: Path) -> TwoStageScorer:
        return self._options.load_scorer(folder)

    def _version(self, held: TwoStageScorer) -> str:
        return held.bundle.version


class Proposer(Part[BundleProposer]):
    """Candidates out of the whole catalogue. Takes a bundle without an item index too: the others can score with it."""

    async def propose(self, folder: str, wish: Wish) -> Proposed:
        proposer = await self._held.get(folder)
        return Proposed(*await self._timed("propose", proposer.propose, wish))

    def _load(self, folder: Path) -> BundleProposer:
        return self._options.load_proposer(folder)

    def _version(self, held: BundleProposer) -> str:
        return held.version


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
