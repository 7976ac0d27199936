"""One replica's service without Ray: histories in, two stages, an answer out; and the swap of bundles under live requests.

A request takes `engine.live` once and keeps it to the end, so a swap is one assignment: who began on the old bundle ends on it.
Model work runs in one thread (a replica has one core), store access in others, so the event loop only ever waits.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from seminar.artifacts import Store
from seminar.history.store import Event, HistoryStore, Imported, import_histories
from seminar.schema import NONE, TASKS
from seminar.scorer import Scored, ScoringHistory, Targets, TwoStageScorer
from serve import api
from serve.explain import explanations
from serve.offers import Offers
from serve.options import Options
from serve.problems import Refused
from serve.rows import Live, history_page, prepare, query_name


@dataclass(frozen=True)
class StageResult:
    """What the two stages gave, and how long each took."""

    scored: Scored
    retrieve_ms: float
    rank_ms: float


class Stages(Protocol):
    """Where GSU and ESU run: in this process, or behind two services."""

    async def score(self, live: Live, history: ScoringHistory, targets: Targets, explain: bool) -> StageResult: ...

    async def hold(self, folder: Path) -> None:
        """Have every process that will score with this bundle load it before the first request needs it."""
        ...


class LocalStages:
    """Both stages in this process, one request at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "score")

    async def score(self, live: Live, history: ScoringHistory, targets: Targets, explain: bool) -> StageResult:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _score, live.scorer, history, targets, explain)

    async def hold(self, folder: Path) -> None:
        """The engine itself holds it."""


def _score(scorer: TwoStageScorer, history: ScoringHistory, targets: Targets, explain: bool) -> StageResult:
    retrieved, retrieve_ms = timed(scorer.retrieve, history, targets)
    scored, rank_ms = timed(scorer.rank, targets, retrieved, explain=explain)
    return StageResult(scored, retrieve_ms, rank_ms)


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """The result, and the milliseconds it took."""
    began = time.perf_counter()
    result = function(*args, **kwargs)
    return result, 1000 * (time.perf_counter() - began)


class Engine:
    """Everything an ingress does; it must `take` a bundle before the first request."""

    def __init__(self, options: Options, store: HistoryStore, stages: Stages) -> None:
        self.options, self.store, self.stages = options, store, stages
        self.offers = Offers(self.take)
        self._live: Live | None = None
        self._io = ThreadPoolExecutor(4, "store")

    @property
    def ready(self) -> bool:
        return self._live is not None

    @property
    def live(self) -> Live:
        if self._live is None:
            raise Refused(503, api.Problem(what="service", got="no bundle", expected="a loaded one", fix="retry in a moment"))
        return self._live

    async def take(self, reference: str) -> None:
        """Load a bundle beside the one in use, then switch; raises, and changes nothing, if it must not be served."""
        live = await self._run(self._load, reference)
        if self._live is not None:
            await self.stages.hold(live.bundle.path)
        self._live = live

    async def score(self, request: api.ScoreRequest) -> api.ScoreResponse:
        began = time.perf_counter()
        _limit("targets", len(request.targets), self.options.max_targets)
        prepared, history_ms = await self._run(timed, prepare, self.live, self.store, request)
        result = await self.stages.score(prepared.live, prepared.history, prepared.targets, request.explain)
        bundle, scored = prepared.live.bundle, result.scored
        explanation = explanations(bundle, request, prepared.history, scored) if request.explain else None
        total_ms = 1000 * (time.perf_counter() - began)
        return api.ScoreResponse(
            bundle_version=bundle.version,
            user_id=request.user_id,
            known_user=prepared.known_user,
            task=TASKS[prepared.targets.task],
            time_ms=prepared.targets.time_ms,
            scores=scored.probability_T.tolist(),
            history_length=prepared.stored,
            history_used=len(prepared.history.item_L),
            retriever=scored.choice.method,
            retriever_reason=scored.choice.reason,
            timings_ms=api.Timings(history=history_ms, retrieve=result.retrieve_ms, rank=result.rank_ms, total=total_ms),
            explanation=explanation,
        )

    async def append(self, request: api.EventsRequest) -> api.EventsResponse:
        """Store behaviours; they are on disk when this returns."""
        _limit("events", len(request.events), self.options.max_events)
        bundle = self.live.bundle
        events = [Event(e.item_id, e.time_ms, query_name(bundle, e), e.event_id, e.request_id) for e in request.events]
        added = await self._run(self.store.append, request.user_id, events)
        return api.EventsResponse(
            user_id=request.user_id,
            accepted=added.accepted,
            duplicates=added.duplicates,
            history_length=added.length,
            unknown_items=int((bundle.item_row([e.item_id for e in events]) == NONE).sum()),
            bundle_version=bundle.version,
        )

    async def history(self, user_id: str, limit: int) -> api.HistoryResponse:
        """A user's newest behaviours; UnknownUser if there is no such user."""
        return await self._run(history_page, self.live, self.store, user_id, limit)

    def describe(self, replicas: Sequence[api.ReplicaState]) -> api.BundleResponse:
        """Versions of everything that makes a score."""
        bundle, options = self.live.bundle, self.options
        return api.BundleResponse(
            version=bundle.version,
            checksum=bundle.manifest.checksum,
            created=bundle.manifest.created,
            psu_fingerprint=bundle.fingerprint,
            inputs={name: ref.version for name, ref in bundle.manifest.inputs.items()},
            retriever=options.retriever,
            overfetch=options.overfetch,
            topology=options.topology,
            text_encoder=bundle.text_encoder,
            items=len(bundle.item_ids),
            queries=len(bundle.query_ids),
            top_k=bundle.config.top_k,
            users=self.store.num_users,
            loading=self.offers.loading,
            refused=self.offers.refused,
            replicas=list(replicas),
        )

    def _load(self, reference: str) -> Live:
        scorer = self.options.load_scorer(self.options.bundle_folder(reference))
        if self.options.import_histories:
            import_for(self.options, scorer, self.store)
        return Live.of(scorer, self.store)

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._io, function, *args)


def import_for(options: Options, scorer: TwoStageScorer, store: HistoryStore) -> Imported | None:
    """Load the histories that the bundle was made from, once a store; None where a bundle came without its `pairs` artefact."""
    version, artifacts = scorer.bundle.manifest.inputs["pairs"].version, Store(options.workdir)
    return import_histories(store, artifacts.open("pairs", version)) if artifacts.exists("pairs", version) else None


def _limit(what: str, got: int, limit: int) -> None:
    if got > limit:
        fix = "split the list over several requests"
        raise Refused(413, api.Problem(what=what, got=str(got), expected=f"at most {limit}", fix=fix))
