"""One replica's service without Ray: histories in, candidates, two stages, an answer out; swaps of bundles under live requests.

A request takes `engine.live` once and keeps it to the end, so a swap is one assignment: who began on the old bundle ends on it.
Model work runs in one thread (a replica has one core), store access in others, so the event loop only ever waits; except for a
request whose history is at hand (`at_hand`): scoring it, in turns (`turns`), takes less than handing it to two threads and back.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from seminar.artifacts import Artifact, Store
from seminar.candidates.proposer import SOURCES
from seminar.client import api
from seminar.errors import UnknownUser
from seminar.history.store import Event, HistoryStore, Imported, import_histories
from seminar.schema import NONE
from seminar.scorer import TwoStageScorer
from serve.answering import answer_fields, recommended
from serve.aside import aside
from serve.at_hand import at_hand
from serve.batch import each_alone
from serve.catalogue import bundles_page, users_page
from serve.explain import explanations
from serve.explaining import Explainer
from serve.observe import Observer, Silent, answered, offering
from serve.offers import Offers
from serve.options import Options
from serve.problems import Refused
from serve.rows import Kept, Live, Prepared, Seen, history_page, prepare, prepare_recommend, query_name
from serve.spans import in_thread, timed
from serve.stages import BothStages, Proposals, StageResult, Stages
from serve.turns import Turns
from serve.users import UserCache

CANDIDATES = 200
"""Ranked for a recommend request that does not say how many."""
SPLIT = "split the list over several requests"


class Engine:
    """Everything an ingress does; it must `take` a bundle before the first request. proposals: none, and it only scores."""

    def __init__(
        self,
        options: Options,
        store: HistoryStore,
        stages: Stages,
        proposals: Proposals | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.options, self.store, self.stages, self.proposals = options, store, stages, proposals
        self.observer, self.token = observer or Silent(), options.token()
        self.offers = Offers(self.take)
        self.user_cache: UserCache[Kept] = UserCache(options.user_cache_mib << 20)
        self._live: Live | None = None
        self._explainer = Explainer(options, store)
        self._turns = Turns()
        self._io = ThreadPoolExecutor(4, "store")
        # What people browse may read every user; scores and events do not wait for it.
        self._browsing = ThreadPoolExecutor(1, "browse")

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
        with offering(self.observer, reference) as taken:
            live = await aside(self._load, reference)
            parts = [part for part in (self.stages, self.proposals) if part is not None]
            await asyncio.gather(*(part.hold(live.bundle.path, first=self._live is None) for part in parts))
            self._live = live
            taken(live.bundle.manifest)

    async def score(self, request: api.ScoreRequest) -> api.ScoreResponse:
        """Probability of each target."""
        return await self._score(self.live, request)

    async def score_batch(self, request: api.BatchRequest) -> api.BatchResponse:
        """Each request answered or refused by itself, all by the bundle that is in use now."""
        live = self.live
        results = await each_alone(request.requests, partial(self._score, live))
        return api.BatchResponse(bundle_version=live.bundle.version, results=results)

    async def _score(self, live: Live, request: api.ScoreRequest) -> api.ScoreResponse:
        began = time.perf_counter()
        _limit("targets", len(request.targets), self.options.max_targets, SPLIT)
        prepared, history_ms, result = await self._both_stages(live, request)
        bundle, scored = prepared.live.bundle, result.scored
        explanation = explanations(bundle, request, prepared.seen.history, scored) if request.explain else None
        total_ms = 1000 * (time.perf_counter() - began)
        response = api.ScoreResponse(
            **answer_fields(request.user_id, prepared.live, prepared.seen, prepared.targets, scored),
            scores=scored.probability_T.tolist(),
            timings_ms=api.Timings(history=history_ms, retrieve=result.retrieve_ms, rank=result.rank_ms, total=total_ms),
            explanation=explanation,
        )
        self.observer.answered(answered("/v1/score", response, scored.probability_T))
        return response

    async def _both_stages(self, live: Live, request: api.ScoreRequest) -> tuple[Prepared, float, StageResult]:
        """The request in rows of the bundle, the milliseconds that took, and what the stages gave."""
        both = self.stages.here
        # Asked again when its turn has come: an event may have been appended meanwhile.
        if both is not None and self._at_hand(live, request) and (found := await self._turns.run(self._now, live, request, both)):
            return found
        prepared, history_ms = await self._stored("history", prepare, live, self.store, request)
        explain_top = request.explain_top if request.explain else 0
        return prepared, history_ms, await self.stages.score(live, prepared.seen.history, prepared.targets, explain_top)

    def _now(self, live: Live, request: api.ScoreRequest, both: BothStages) -> tuple[Prepared, float, StageResult] | None:
        """The same of a request whose history is at hand, None of others."""
        found = self._at_hand(live, request)
        if found is None:
            return None
        seen, version = found
        live.users.get(live.bundle.version, request.user_id, version)
        prepared, history_ms = timed("history", partial(prepare, seen=seen), live, self.store, request)
        return prepared, history_ms, both(live, prepared.seen.history, prepared.targets)

    def _at_hand(self, live: Live, request: api.ScoreRequest) -> tuple[Seen, bytes] | None:
        try:
            return at_hand(live, self.store, request)
        except Exception:
            self.observer.store_failed("history")
            raise

    async def recommend(self, request: api.RecommendRequest) -> api.RecommendResponse:
        """Candidates of the bundle in use, scored as POST /v1/score scores them, the best of them with reasons."""
        began = time.perf_counter()
        live, most = self.live, self.options.max_targets
        proposals = self._proposals_of(live)
        count = request.candidates or max(request.n, min(CANDIDATES, most))
        _limit("n" if request.candidates is None else "candidates", count, most, "lower it, or raise serve.max_targets")
        asked, history_ms = await self._stored("history", prepare_recommend, live, self.store, request, count)
        proposed = await proposals.propose(live, asked.wish)
        targets = asked.targets(proposed.candidates.item_C)
        explain_top = request.n if request.because else 0
        result = await self.stages.score(live, asked.seen.history, targets, explain_top)
        scored, origin_CS = result.scored, proposed.candidates.origin_CS
        items = recommended(request, asked, proposed, scored)
        total_ms = 1000 * (time.perf_counter() - began)
        response = api.RecommendResponse(
            **answer_fields(request.user_id, live, asked.seen, targets, scored),
            items=items,
            candidates=len(origin_CS),
            by_source=dict(zip(SOURCES, origin_CS.sum(0).tolist(), strict=True)),
            timings_ms=api.RecommendTimings(
                history=history_ms,
                propose=proposed.propose_ms,
                retrieve=result.retrieve_ms,
                rank=result.rank_ms,
                total=total_ms,
            ),
        )
        self.observer.answered(answered("/v1/recommend", response, scored.probability_T))
        return response

    async def explain(self, request: api.ExplainRequest) -> api.ExplainResponse:
        """Why one target scores as it does, with the bundle in use or another published one."""
        return await self._explainer.explain(self.live, request)

    async def append(self, request: api.EventsRequest) -> api.EventsResponse:
        """Store behaviours; they are on disk when this returns."""
        _limit("events", len(request.events), self.options.max_events, SPLIT)
        bundle = self.live.bundle
        events = [Event(e.item_id, e.time_ms, query_name(bundle, e), e.event_id, e.request_id) for e in request.events]
        added, took_ms = await self._stored("append", self.store.append, request.user_id, events)
        self.observer.appended(added.accepted, added.duplicates, took_ms)
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
        page, _ = await self._stored("page", history_page, self.live, self.store, user_id, limit)
        return page

    async def users(self, prefix: str, order: api.UserOrder, limit: int) -> api.UsersResponse:
        """Users whose id begins with `prefix`."""
        return await self._browse(users_page, self.store, prefix, order, limit)

    async def items(self, text: str, limit: int) -> api.ItemsResponse:
        """Catalogue items that have every word of `text`."""
        return await self._browse(self.live.catalogue.items, text, limit)

    async def queries(self, text: str, limit: int) -> api.QueriesResponse:
        """Catalogue queries that have every word of `text`."""
        return await self._browse(self.live.catalogue.queries, text, limit)

    async def bundles(self) -> api.BundlesResponse:
        """Published bundles."""
        bundle = self.live.bundle
        return await self._browse(bundles_page, Store(self.options.workdir), Artifact(bundle.path, bundle.manifest))

    def require_bundle(self) -> None:
        """Refused, as a request would be, while no bundle is loaded."""
        _ = self.live

    async def describe(self, replicas: Sequence[api.ReplicaState]) -> api.BundleResponse:
        """Versions of everything that makes a score."""
        bundle, options = self.live.bundle, self.options
        users = await self._browse(lambda: self.store.num_users)
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
            recommends=bundle.proposes and self.proposals is not None,
            users=users,
            loading=self.offers.loading,
            refused=self.offers.refused,
            replicas=list(replicas),
        )

    def _proposals_of(self, live: Live) -> Proposals:
        if not live.bundle.proposes:
            what, fix = f"bundle {live.bundle.version}", "run `seminar build-index`, then serve the bundle it makes"
            raise Refused(409, api.Problem(what=what, got="no item index", expected="one", fix=fix))
        if self.proposals is None:
            fix = "deploy it again with recommend: true and a bundle that has an item index"
            raise Refused(409, api.Problem(what="service", got="no deployment Proposer", expected="one", fix=fix))
        return self.proposals

    def _load(self, reference: str) -> Live:
        scorer = self.options.load_scorer(self.options.bundle_folder(reference))
        if self.options.import_histories:
            import_for(self.options, scorer, self.store)
        return Live.of(scorer, self.store, self.user_cache, ready=self.options.topology == "fused")

    async def _stored(self, stage: str, function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        """What a use of the store gives, and the milliseconds it took."""
        try:
            return await self._run(timed, stage, function, *args)
        except (Refused, UnknownUser):
            raise
        except Exception:
            self.observer.store_failed(stage)
            raise

    async def _browse(self, function: Callable[..., Any], *args: Any) -> Any:
        return await in_thread(self._browsing, function, *args)

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await in_thread(self._io, function, *args)


def import_for(options: Options, scorer: TwoStageScorer, store: HistoryStore) -> Imported | None:
    """Load the histories that the bundle was made from, once a store; None where a bundle came without its `pairs` artefact."""
    version, artifacts = scorer.bundle.manifest.inputs["pairs"].version, Store(options.workdir)
    return import_histories(store, artifacts.open("pairs", version)) if artifacts.exists("pairs", version) else None


def _limit(what: str, got: int, limit: int, fix: str) -> None:
    if got > limit:
        raise Refused(413, api.Problem(what=what, got=str(got), expected=f"at most {limit}", fix=fix))
