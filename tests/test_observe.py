"""What the service tells of itself, without Ray: counts of requests, drift of scores, log lines, request ids."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from ray._common.formatters import JSONFormatter

from seminar.artifacts import Artifact, Store
from seminar.schema import CTR, NONE
from seminar.scorer import ScoringHistory, Targets
from serve.drift import ScoreDrift
from serve.metric_table import METRICS
from serve.observe import CURRENT, Answered, Record
from serve.online_recall import OnlineRecall, Search, recall_of
from serve.options import Options
from serve.request_log import KEY, RequestLog
from serve.sink import Sums
from serve.watch import Watch
from tests.conftest import START_MS
from tests.served_world import Service, World, open_service


@pytest.fixture
def sums() -> Sums:
    return Sums()


@pytest.fixture
def watch(sums: Sums) -> Iterator[Watch]:
    watch = Watch(sums, chosen(drift_window=1000), logging.getLogger("seminar-test-watch"))
    yield watch
    watch.close()


def chosen(**settings: Any) -> Options:
    return Options(workdir="unused", **settings)


def answered(scores: np.ndarray, version: str = "v1", task: str = "ctr", **stage_ms: float) -> Answered:
    return Answered("/v1/score", "u1", version, task, "int8", 300, scores, stage_ms or {"history": 1.0, "retrieve": 2.0})


def test_metric_names_carry_units_and_are_unique() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(name.startswith("seminar_") for name in names)
    assert all(metric.buckets == tuple(sorted(metric.buckets)) for metric in METRICS)
    assert {metric.kind == "histogram" for metric in METRICS if metric.buckets} == {True}


def test_a_request_is_counted_by_route_and_status_with_its_stages(watch: Watch, sums: Sums) -> None:
    for status in (200, 200, 422):
        watch.began()
        watch.answered(answered(np.full(10, 0.3)))
        watch.ended(Record("r", "POST", "/v1/score", status, total_ms=5.0))
    watch.began()
    watch.flush()
    requests = {labels: count for (name, labels), count in sums.counters.items() if name == "seminar_requests"}
    assert requests == {
        (("route", "/v1/score"), ("status", "200")): 2,
        (("route", "/v1/score"), ("status", "422")): 1,
    }
    assert sums.values["seminar_request_seconds", (("route", "/v1/score"),)] == [0.005] * 3
    stage = (("route", "/v1/score"), ("stage", "retrieve"), ("topology", "fused"))
    assert sums.values["seminar_stage_seconds", stage] == [0.002] * 3
    assert sums.counters["seminar_targets_scored", (("route", "/v1/score"), ("task", "ctr"))] == 30
    assert sums.gauges["seminar_requests_in_flight", ()] == 1


def test_a_record_sums_the_users_of_a_batch(watch: Watch) -> None:
    record = Record("r")
    token = CURRENT.set(record)
    for _ in range(3):
        watch.answered(answered(np.full(4, 0.5), retrieve=2.0))
    CURRENT.reset(token)
    assert (record.targets, record.stage_ms, record.bundle_version) == (12, {"retrieve": 6.0}, "v1")


def test_swaps_and_refusals_are_told_and_versions_change_over(watch: Watch, sums: Sums) -> None:
    watch.offered("v1", 100.0, None)
    watch.offered("v2", 200.0, "ArtifactError: damaged")
    watch.offered("v3", 300.0, None)
    watch.flush()
    info = {dict(labels)["version"]: value for (name, labels), value in sums.gauges.items() if name == "seminar_bundle_info"}
    assert info == {"v1": 0, "v3": 1}
    assert sums.counters["seminar_bundle_swaps", ()] == 1
    assert sums.counters["seminar_bundle_refusals", ()] == 1
    assert sums.gauges["seminar_bundle_created_seconds", ()] == 300


@dataclass
class Cache:
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    size_bytes: int = 0


def test_counts_of_a_cache_are_told_once(watch: Watch, sums: Sums) -> None:
    cache = Cache()
    watch.follow(cache)
    cache.hits, cache.size_bytes = 5, 100
    watch.flush()
    cache.hits, cache.misses = 7, 1
    watch.flush()
    watch.flush()
    assert sums.counters["seminar_user_cache_hits", ()] == 7
    assert sums.counters["seminar_user_cache_misses", ()] == 1
    assert sums.gauges["seminar_user_cache_bytes", ()] == 100


def scores(draw: np.random.Generator, mean: float, count: int) -> np.ndarray:
    return (1 / (1 + np.exp(-draw.normal(mean, 1, count)))).astype(np.float32)


def test_drift_is_quiet_on_the_same_scores_and_loud_on_moved_ones() -> None:
    draw, drift = np.random.default_rng(0), ScoreDrift(10_000)
    for _ in range(50):
        drift.add(scores(draw, -2.0, 1000))
    assert drift.psi()["start"] < 0.02
    for _ in range(10):
        drift.add(scores(draw, -1.0, 1000))
    assert drift.psi()["start"] > 0.25
    assert np.isclose(drift.quantiles()["0.5"], 1 / (1 + np.exp(1.0)), atol=0.02)


def test_drift_says_nothing_before_a_window_is_full() -> None:
    drift = ScoreDrift(1000)
    assert drift.quantiles() == {}
    drift.add(np.full(999, 0.2))
    assert drift.psi() == {}


def test_a_swap_starts_drift_anew_and_compares_with_the_bundle_before(watch: Watch, sums: Sums) -> None:
    draw = np.random.default_rng(0)
    watch.offered("v1", 1.0, None)
    for _ in range(20):
        watch.answered(answered(scores(draw, -2.0, 200)))
        watch.flush()
    watch.offered("v2", 2.0, None)
    watch.answered(answered(scores(draw, 5.0, 10_000), version="v1"))
    for _ in range(20):
        watch.answered(answered(scores(draw, -1.0, 200), version="v2"))
        watch.flush()
    psi = {dict(labels)["against"]: value for (name, labels), value in sums.gauges.items() if name == "seminar_score_psi"}
    assert psi["start"] < 0.15 < 0.25 < psi["before"] < 2


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, list[dict[str, object]]]]:
    written: list[dict[str, object]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(json.loads(self.format(record)))

    logger, handler = logging.getLogger("seminar-test-requests"), Keep()
    handler.setFormatter(JSONFormatter())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, written
    logger.removeHandler(handler)


def test_only_slow_refused_failed_and_sampled_requests_have_a_line(lines: tuple[logging.Logger, list[dict[str, object]]]) -> None:
    logger, written = lines
    log = RequestLog(logger, chosen(log_slow_ms=100, log_sample=5))
    for status, total_ms in ((200, 1.0), (200, 150.0), (422, 1.0), (503, 1.0), (200, 1.0), (200, 1.0)):
        assert log.write(Record("r", "POST", "/v1/score", status, total_ms))
    assert [line["why"] for line in written] == ["slow", "refused", "overloaded", "sampled"]


def test_a_line_has_the_request_and_no_raw_user(
    lines: tuple[logging.Logger, list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, written = lines
    record = Record("r-1", "POST", "/v1/score", 200, 12.3456, "alice", "v1", 100, {"retrieve": 2.0})
    RequestLog(logger, chosen(log_sample=1)).write(record)
    monkeypatch.setenv(KEY, "secret")
    RequestLog(logger, chosen(log_sample=1)).write(record)
    RequestLog(logger, chosen(log_sample=1, log_raw_users=True)).write(record)
    plain, keyed, raw = written
    assert {
        "request_id": "r-1",
        "path": "/v1/score",
        "status": 200,
        "total_ms": 12.35,
        "bundle_version": "v1",
    }.items() <= plain.items()
    assert plain["stage_ms"] == {"retrieve": 2.0}
    assert "alice" not in json.dumps([plain, keyed])
    assert plain["user"] != keyed["user"]
    assert raw["user"] == "alice"


def test_a_failure_has_its_traceback(lines: tuple[logging.Logger, list[dict[str, object]]]) -> None:
    logger, written = lines
    try:
        raise KeyError("lost")
    except KeyError as error:
        RequestLog(logger, chosen()).write(Record("r-2", "POST", "/v1/score", 500, error=error))
    assert written[0]["request_id"] == "r-2"
    assert "KeyError: 'lost'" in str(written[0]["exc_text"])
    assert "test_a_failure_has_its_traceback" in str(written[0]["exc_text"])


def test_a_flood_of_refusals_does_not_flood_the_log(lines: tuple[logging.Logger, list[dict[str, object]]]) -> None:
    logger, written = lines
    log = RequestLog(logger, chosen(), lines_per_s=10)
    told = [log.write(Record("r", "POST", "/v1/score", 503)) for _ in range(1000)]
    assert len(written) == sum(told) <= 30


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture
def watched(
    world: World, tmp_path: Path, lines: tuple[logging.Logger, list[dict[str, object]]]
) -> Iterator[tuple[Service, Watch, Sums]]:
    sums, options = Sums(), chosen(recall_sample=1, log_sample=1)
    watch = Watch(sums, options, lines[0])
    with open_service(world, tmp_path / "history", watch, retriever="int8") as service:
        yield service, watch, sums
    watch.close()


LATER_MS = 1_700_000_000_000
TARGETS = [{"item_id": f"i{n:02d}"} for n in range(0, 60, 4)]


def test_a_score_is_told_whole(
    watched: tuple[Service, Watch, Sums], lines: tuple[logging.Logger, list[dict[str, object]]]
) -> None:
    service, watch, sums = watched
    service.score(user_id="u17", targets=TARGETS, time_ms=LATER_MS)
    service.recommend(user_id="u17", n=5, candidates=30, time_ms=LATER_MS)
    assert service.client.post("/v1/score", json={}).status_code == 422
    watch.close()
    told = {name for name, _ in (*sums.counters, *sums.gauges, *sums.values)}
    silent = {metric.name for metric in METRICS} - told
    assert {name for name in silent if not name.startswith("seminar_user_cache")} == {
        "seminar_append_seconds", "seminar_bundle_refusals", "seminar_bundle_swaps", "seminar_events_accepted",
        "seminar_events_duplicate", "seminar_log_dropped", "seminar_recall_dropped", "seminar_rejections",
        "seminar_score_psi", "seminar_store_errors",
    }  # fmt: skip
    stages = {dict(labels)["stage"] for name, labels in sums.values if name == "seminar_stage_seconds"}
    assert stages == {"history", "propose", "retrieve", "rank"}
    assert [line["status"] for line in lines[1]] == [200, 200, 422]
    assert lines[1][0]["stage_ms"].keys() == {"history", "retrieve", "rank"}


def test_online_recall_agrees_with_exact_search(watched: tuple[Service, Watch, Sums]) -> None:
    service, watch, sums = watched
    for user in ("u17", "u08", "u26"):
        service.score(user_id=user, targets=TARGETS, time_ms=LATER_MS)
    watch.close()
    of_int8 = (("retriever", "int8"),)
    assert sums.counters["seminar_recall_samples", of_int8] >= 1
    assert 0.9 <= sums.counters["seminar_recall_found", of_int8] / sums.counters["seminar_recall_checked", of_int8] <= 1


def test_online_recall_counts_what_was_missed(world: World) -> None:
    scorer = Options(workdir=str(world.store.root), retriever="int8", keep_keys=False).load_scorer(world.bundles[0].path)
    rows = np.arange(60)
    history = ScoringHistory(rows, np.full(60, NONE), START_MS + rows)
    targets = Targets(rows[:5], np.full(5, NONE), CTR, LATER_MS)
    found = scorer.retrieve(history, targets)
    checked, kept = recall_of(Search(scorer, history, targets, found))
    assert kept == pytest.approx(checked)
    relevance_TL = scorer.relevance(history, targets).numpy()
    worst_TK = np.sort(np.argsort(relevance_TL, 1)[:, : found.kept_TK.shape[1]], 1)
    all_of_it = {"item_U": rows, "query_U": history.query_L, "time_ms_U": history.time_ms_L, "position_U": rows}
    worst = replace(found, kept_TK=worst_TK, **all_of_it)
    assert recall_of(Search(scorer, history, targets, worst)) == (checked, 0.0)


def test_a_burst_of_samples_is_dropped_and_counted(world: World) -> None:
    told: list[Any] = []
    recall = OnlineRecall(1, told.append, logging.getLogger("seminar-test-watch"))
    scorer = Options(workdir=str(world.store.root), retriever="int8", keep_keys=False).load_scorer(world.bundles[0].path)
    rows = np.arange(60)
    history = ScoringHistory(rows, np.full(60, NONE), START_MS + rows)
    targets = Targets(rows[:5], np.full(5, NONE), CTR, LATER_MS)
    search = Search(scorer, history, targets, scorer.retrieve(history, targets))
    for _ in range(200):
        recall.offer(search)
    recall.close()
    sums = Sums()
    for note in told:
        note(sums)
    repeated = sums.counters["seminar_recall_samples", (("retriever", "int8"),)]
    assert repeated + sums.counters["seminar_recall_dropped", ()] == 200
    assert repeated < 200


def test_exact_and_short_searches_are_not_sampled(world: World) -> None:
    told: list[Any] = []
    recall = OnlineRecall(1, told.append, logging.getLogger("seminar-test-watch"))
    for method, length in (("exact", 60), ("merged", 60), ("int8", 3)):
        scorer = Options(workdir=str(world.store.root), retriever=method, keep_keys=False).load_scorer(world.bundles[0].path)
        rows = np.arange(length)
        history = ScoringHistory(rows, np.full(length, NONE), START_MS + rows)
        targets = Targets(rows[:2], np.full(2, NONE), CTR, LATER_MS)
        recall.offer(Search(scorer, history, targets, scorer.retrieve(history, targets)))
    recall.close()
    assert told == []


def test_events_and_refused_bundles_are_told(watched: tuple[Service, Watch, Sums]) -> None:
    service, watch, sums = watched
    events = [{"item_id": "i00", "time_ms": LATER_MS, "event_id": "e1"}] * 2
    assert service.client.post("/v1/events", json={"user_id": "new", "events": events}).status_code == 200
    assert not service.offer("nowhere")
    watch.flush()
    assert sums.counters["seminar_events_accepted", ()] == 1
    assert sums.counters["seminar_events_duplicate", ()] == 1
    assert len(sums.values["seminar_append_seconds", ()]) == 1
    assert sums.counters["seminar_bundle_refusals", ()] == 1


def test_a_store_that_fails_is_counted_and_logged_with_the_request_id(
    watched: tuple[Service, Watch, Sums], lines: tuple[logging.Logger, list[dict[str, object]]]
) -> None:
    service, watch, sums = watched
    service.engine.store.close()
    client = TestClient(service.client.app, raise_server_exceptions=False)
    body = {"user_id": "u17", "targets": TARGETS}
    answer = client.post("/v1/score", json=body, headers={"X-Request-Id": "mine-7"})
    watch.flush()
    assert answer.status_code == 500
    assert sums.counters["seminar_store_errors", (("operation", "history"),)] == 1
    line = next(line for line in lines[1] if line["request_id"] == "mine-7")
    assert line["why"] == "failed"
    assert "Traceback" in str(line["exc_text"])


@pytest.mark.parametrize(("given", "kept"), [("abc-1", True), ("", False), ("a b", False), ("x" * 200, False), ("\u00e9", False)])
def test_a_request_id_is_taken_or_made(watched: tuple[Service, Watch, Sums], given: str, kept: bool) -> None:
    service, _, _ = watched
    answer = service.client.get("/v1/health/live", headers={"X-Request-Id": given.encode("latin-1")})
    assert (answer.headers["x-request-id"] == given) == kept
    assert answer.headers["x-request-id"]


def test_paths_that_no_route_knows_share_one_label(watched: tuple[Service, Watch, Sums]) -> None:
    service, watch, sums = watched
    for n in range(20):
        service.client.get(f"/scan/{n}")
    service.client.get("/v1/users/u17/history")
    watch.flush()
    routes = {dict(labels)["route"] for name, labels in sums.counters if name == "seminar_requests"}
    assert routes == {"other", "/v1/users/{user_id:path}/history"}
