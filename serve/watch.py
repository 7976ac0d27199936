"""The observer of a replica: notes in a queue on a request's path, everything else once a second in a thread of its own.

A note costs about a microsecond; telling Ray of one value costs five to eight (`python -m benchmarks.observing`), so the thread
adds up counters first. Histograms are told value by value, because Ray takes them no other way.
"""

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
from numpy import ndarray

from seminar.scorer import TwoStageScorer
from seminar.scoring import ScoringHistory, Searched, Targets
from serve.drift import ScoreDrift
from serve.observe import Answered, Record, remember
from serve.online_recall import OnlineRecall, Search
from serve.options import Options
from serve.request_log import RequestLog
from serve.sink import Sink

PERIOD_S = 1.0
Note = Callable[[Sink], None]


class CacheCounts(Protocol):
    """What a cache has done since it was made."""

    @property
    def hits(self) -> int: ...

    @property
    def misses(self) -> int: ...

    @property
    def evictions(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...


class Watch:
    """An Observer (`serve/observe.py`) that tells a sink. logger: where slow, refused and sampled requests are written."""

    def __init__(self, sink: Sink, options: Options, logger: logging.Logger, period_s: float = PERIOD_S) -> None:
        self._sink, self._options, self._logger = sink, options, logger
        self._log, self._period_s = RequestLog(logger, options), period_s
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._recall = OnlineRecall(options.recall_sample, self._notes.put, logger)
        self._drift: dict[str, ScoreDrift] = {}
        self._scores: defaultdict[str, list[ndarray]] = defaultdict(list)
        self._version: str | None = None
        self._created_s = 0.0
        self._in_flight: int | None = None
        self._caches: list[tuple[CacheCounts, dict[str, int]]] = []
        self._end = threading.Event()
        self._flushing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def follow(self, cache: CacheCounts) -> None:
        """Publish a cache's counts from now on."""
        self._caches.append((cache, dict.fromkeys(("hits", "misses", "evictions"), 0)))

    def began(self) -> None:
        self._in_flight = (self._in_flight or 0) + 1

    def ended(self, record: Record) -> None:
        self._in_flight = (self._in_flight or 0) - 1
        self._notes.put(partial(self._on_ended, record))

    def answered(self, answered: Answered) -> None:
        remember(answered)
        self._notes.put(partial(self._on_answered, answered))

    def retrieved(self, scorer: TwoStageScorer, history: ScoringHistory, targets: Targets, found: Searched) -> None:
        self._notes.put(partial(_on_retrieved, found))
        self._recall.offer(Search(scorer, history, targets, found))

    def appended(self, accepted: int, duplicates: int, took_ms: float) -> None:
        self._notes.put(partial(_on_appended, accepted, duplicates, took_ms))

    def offered(self, bundle: str, created_s: float, refusal: str | None) -> None:
        self._notes.put(partial(self._on_offered, bundle, created_s, refusal))

    def store_failed(self, operation: str) -> None:
        self._notes.put(lambda sink: sink.count("seminar_store_errors", 1, operation=operation))

    def rejected(self, by: str) -> None:
        self._notes.put(lambda sink: sink.count("seminar_rejections", 1, by=by))

    def close(self) -> None:
        """Tell everything that is known, and stop."""
        self._recall.close()
        self._end.set()
        self._thread.join()
        self.flush()

    def flush(self) -> None:
        """Tell the sink what was noted since the last time."""
        with self._flushing:
            sums = _Added(self._sink)
            for _ in range(self._notes.qsize()):
                self._notes.get()(sums)
            self._tell_state(sums)
            sums.tell()

    def _work(self) -> None:
        while not self._end.wait(self._period_s):
            try:
                self.flush()
            except Exception:
                # A service that cannot count still serves.
                self._logger.exception("metrics could not be told")

    def _on_ended(self, record: Record, sink: Sink) -> None:
        route = record.route or "other"
        sink.count("seminar_requests", 1, route=route, status=str(record.status))
        sink.observe("seminar_request_seconds", record.total_ms / 1000, route=route)
        if not self._log.write(record):
            sink.count("seminar_log_dropped", 1)

    def _on_answered(self, answered: Answered, sink: Sink) -> None:
        route, task = answered.route, answered.task
        for stage, took_ms in answered.stage_ms.items():
            sink.observe("seminar_stage_seconds", took_ms / 1000, stage=stage, route=route, topology=self._options.topology)
        sink.count("seminar_targets_scored", len(answered.scores_T), route=route, task=task)
        sink.observe("seminar_history_behaviours", answered.history_length)
        # Requests that began on the bundle before end on it.
        if answered.bundle_version == self._version:
            self._scores[task].append(answered.scores_T)

    def _on_offered(self, bundle: str, created_s: float, refusal: str | None, sink: Sink) -> None:
        if refusal is not None:
            sink.count("seminar_bundle_refusals", 1)
            return
        if self._version is not None:
            sink.count("seminar_bundle_swaps", 1)
            sink.set("seminar_bundle_info", 0, version=self._version)
        self._version = bundle
        self._count_scores()
        window = self._options.drift_window
        self._drift = {task: ScoreDrift(window, drift.newest) for task, drift in self._drift.items()}
        self._created_s = created_s

    def _count_scores(self) -> None:
        # All of a second at once: numpy costs as much for a hundred scores as for ten thousand.
        for task, scores in self._scores.items():
            if task not in self._drift:
                self._drift[task] = ScoreDrift(self._options.drift_window)
            self._drift[task].add(np.concatenate(scores))
        self._scores.clear()

    def _tell_state(self, sink: Sink) -> None:
        # All gauges every time: Ray forgets one that nobody has set for twenty seconds.
        self._count_scores()
        if self._in_flight is not None:
            sink.set("seminar_requests_in_flight", self._in_flight)
        if self._version is not None:
            sink.set("seminar_bundle_info", 1, version=self._version)
            sink.set("seminar_bundle_created_seconds", self._created_s)
        for task, drift in self._drift.items():
            for against, value in drift.psi().items():
                sink.set("seminar_score_psi", value, task=task, against=against)
            for quantile, value in drift.quantiles().items():
                sink.set("seminar_score_quantile", value, task=task, quantile=quantile)
        for cache, told in self._caches:
            for what in told:
                now = int(getattr(cache, what))
                sink.count(f"seminar_user_cache_{what}", now - told[what])
                told[what] = now
            sink.set("seminar_user_cache_bytes", cache.size_bytes)


def _on_retrieved(found: Searched, sink: Sink) -> None:
    sink.count("seminar_retriever_choices", 1, retriever=found.choice.method)
    if len(found.position_TK):
        sink.observe("seminar_kept_behaviours", float(np.count_nonzero(found.position_TK >= 0) / len(found.position_TK)))


def _on_appended(accepted: int, duplicates: int, took_ms: float, sink: Sink) -> None:
    sink.count("seminar_events_accepted", accepted)
    sink.count("seminar_events_duplicate", duplicates)
    sink.observe("seminar_append_seconds", took_ms / 1000)


class _Added:
    """A sink that adds up counters, and tells another one."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._counts: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)

    def count(self, name: str, value: float, **labels: str) -> None:
        self._counts[name, tuple(labels.items())] += value

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._sink.observe(name, value, **labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._sink.set(name, value, **labels)

    def tell(self) -> None:
        for (name, labels), value in self._counts.items():
            if value > 0:
                self._sink.count(name, value, **dict(labels))
