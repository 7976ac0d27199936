"""POST /v1/explain: why one target scores as it does, with any retriever, top K and published bundle.

It runs in the process that holds the histories, under both topologies: that process has every bundle it serves whole, one target
needs no GPU, and the stages' replicas keep their time for scores. Another bundle is loaded beside the one in use and is the only
one of its kind that is kept; a request works with one bundle from its first step to its last.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from seminar.artifacts import Store
from seminar.client import api
from seminar.history.store import HistoryStore
from seminar.scorer import TwoStageScorer
from serve.answering import answer_fields
from serve.explained import Found, told
from serve.held import Held
from serve.options import Options
from serve.problems import Refused
from serve.rows import Live, Prepared, prepare
from serve.spans import timed
from serve.users import UserCache

BESIDE = 1
"""Bundles kept beside the one in use."""


class Explainer:
    """Explains one request at a time, on a thread of its own. store: histories of the users."""

    def __init__(self, options: Options, store: HistoryStore) -> None:
        self._options, self._store = options, store
        self._beside = Held(self._load, BESIDE)
        self._thread = ThreadPoolExecutor(1, "explain")

    async def explain(self, in_use: Live, request: api.ExplainRequest) -> api.ExplainResponse:
        """Refused for a version that is not published, an unknown id, or a retriever that the bundle's gate cannot use."""
        live = in_use
        if request.bundle is not None and request.bundle != in_use.bundle.version:
            live = await self._beside.get(str(await asyncio.to_thread(self._folder, request.bundle)))
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._explain, live, request)

    def _folder(self, version: str) -> Path:
        store = Store(self._options.workdir)
        if not store.exists("bundle", version):
            problem = api.Problem(
                what="bundle", got=repr(version), expected="a published version", fix="GET /v1/bundles lists them"
            )
            raise Refused(422, problem)
        return store.open("bundle", version).path

    def _load(self, folder: Path) -> Live:
        # Without kept keys: those are for the bundles that are served.
        options = self._options.model_copy(update={"keep_keys": False})
        return Live.of(options.load_scorer(folder), self._store, UserCache(0), ready=False)

    def _explain(self, live: Live, request: api.ExplainRequest) -> api.ExplainResponse:
        began = time.perf_counter()
        asked = api.ScoreRequest(
            user_id=request.user_id, targets=[request.target], task=request.task, time_ms=request.time_ms, explain=True
        )
        prepared, history_ms = timed("history", prepare, live, self._store, asked, "target")
        scorer = live.scorer.searching(request.retriever, request.top_k)
        found = _find(scorer, prepared)
        total_ms = 1000 * (time.perf_counter() - began)
        timings = api.ExplainTimings(
            history=history_ms, retrieve=found.retrieve_ms, rank=found.rank_ms, exact=found.exact_ms, total=total_ms
        )
        fields = answer_fields(request.user_id, live, prepared.seen, prepared.targets, found.scored)
        return told(request, prepared, scorer.bundle.config.top_k, found, fields | {"timings_ms": timings})


def _find(scorer: TwoStageScorer, prepared: Prepared) -> Found:
    """Both stages as a score has them, and the exact relevance."""
    history, targets = prepared.seen.history, prepared.targets
    retrieved, retrieve_ms = timed("retrieve", scorer.retrieve, history, targets)
    scored, rank_ms = timed("rank", partial(scorer.rank, explain=True), targets, retrieved)
    exact_TL, exact_ms = timed("exact", scorer.relevance, history, targets)
    assert scored.explanation is not None
    return Found(scored, scored.explanation, exact_TL[0].numpy(), retrieve_ms, rank_ms, exact_ms)
