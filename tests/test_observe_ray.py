"""What a served application really exports: metrics on the node's endpoint, one connected trace a request, lines of JSON."""

import json
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.grafana.check import evaluate
from seminar.artifacts import Artifact, Store
from serve.metric_table import COMMON, METRICS
from tests.metric_names import labels_by_name, queries
from tests.served_metrics import SAMPLED, Watched, prometheus_of, watched_service
from tests.served_world import World

LATER_MS = 1_700_000_000_000
ITEMS = [{"item_id": f"i{n:02d}"} for n in range(0, 60, 4)]
PARENT = "b7ad6b7169203331"


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def watched(ray_session: None, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_service(world, tmp_path_factory.mktemp("watched") / "history", **SAMPLED) as service:
        for topology in ("fused", "split"):
            for n, user in enumerate(("u17", "u08", "u26", "u17") * 4):
                score = {"user_id": user, "targets": ITEMS, "time_ms": LATER_MS}
                assert post(f"{service.url}/{topology}/v1/score", score, {"X-Request-Id": f"{topology}-{n}"}) == 200
            events = [{"item_id": "i00", "time_ms": LATER_MS, "event_id": "e"}] * 2
            assert post(f"{service.url}/{topology}/v1/events", {"user_id": f"new-{topology}", "events": events}) == 200
            assert post(f"{service.url}/{topology}/v1/score", {"user_id": "u17"}, {"X-Request-Id": f"{topology}-bad"}) == 422
        assert post(f"{service.url}/fused/v1/recommend", {"user_id": "u17", "n": 3, "candidates": 20}) == 200
        yield service


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> int:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


EVENTUAL = {"bundle_refusals", "bundle_swaps", "store_errors", "rejections", "recall_dropped", "log_dropped"}
"""Counters of what did not happen."""


def test_every_metric_of_the_table_is_exported_with_its_labels(watched: Watched) -> None:
    happened = [m for m in METRICS if m.name.removeprefix("seminar_") not in EVENTUAL and "user_cache" not in m.name]
    text = watched.metrics(*(name for metric in happened for name in metric.exported))
    for metric in happened:
        line = next(line for line in text.splitlines() if line.startswith(f"{metric.exported[0]}{{"))
        assert all(f'{label}="' in line for label in (*COMMON, *metric.labels)), line
    known = {name for metric in METRICS for name in metric.exported}
    exported = {line.split("{")[0] for line in text.splitlines() if line.startswith("ray_seminar_")}
    assert exported <= known


def total(text: str, name: str, *labels: str) -> float:
    """Sum of the series with all these labels."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and all(label in line for label in labels)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize("topology", ["fused", "split"])
def test_counts_are_right_and_tell_topologies_apart(watched: Watched, topology: str) -> None:
    # Replicas export at moments of their own, and recall is counted by a thread that gives way to all others.
    mine, scored, deadline = f'application="{topology}"', ('route="/v1/score"', 'status="200"'), time.monotonic() + 60
    while True:
        text = watched.metrics()
        counted = total(text, "ray_seminar_requests_total", mine, *scored)
        if counted >= 16 and total(text, "ray_seminar_recall_checked_total", mine) > 0:
            break
        assert time.monotonic() < deadline
        time.sleep(1)
    assert total(text, "ray_seminar_requests_total", mine, *scored) == 16
    assert total(text, "ray_seminar_stage_seconds_count", mine, f'topology="{topology}"') >= 48
    other = "fused" if topology == "split" else "split"
    assert total(text, "ray_seminar_stage_seconds_count", mine, f'topology="{other}"') == 0
    searcher = {"fused": "Ingress", "split": "GSU"}
    for one, deployment in searcher.items():
        checked = total(text, "ray_seminar_recall_checked_total", mine, f'deployment="{deployment}"')
        assert (checked > 0) == (one == topology)


def lines_of(watched: Watched, deployment: str) -> list[dict[str, Any]]:
    files = watched.logs.glob(f"replica_*{deployment}*.log")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("topology", ["fused", "split"])
def test_log_lines_are_json_with_the_request_and_no_access_line(watched: Watched, topology: str) -> None:
    deadline = time.monotonic() + 20
    while not (found := [x for x in lines_of(watched, f"{topology}_Ingress") if x.get("request_id") == f"{topology}-3"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (line,) = found
    assert (line["path"], line["status"], line["why"]) == ("/v1/score", 200, "sampled")
    assert line["stage_ms"].keys() == {"history", "retrieve", "rank"}
    assert line["bundle_version"]
    assert "u17" not in json.dumps(line)
    (refused,) = [x for x in lines_of(watched, f"{topology}_Ingress") if x.get("request_id") == f"{topology}-bad"]
    assert (refused["why"], refused["status"]) == ("refused", 422)


def spans_of(folder: Path, trace: str) -> list[dict[str, Any]]:
    spans = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return [span for span in spans if span["trace"] == trace]


def connected(spans: list[dict[str, Any]], names: set[str]) -> bool:
    """All these spans are there, and every span's parent is there or is the client's."""
    return names <= {s["name"] for s in spans} and {s["parent"] for s in spans} <= {PARENT, *(s["span"] for s in spans)}


RECOMMEND = {"user_id": "u17", "n": 3, "candidates": 20, "time_ms": LATER_MS}
SCORE = {"user_id": "u17", "targets": ITEMS, "time_ms": LATER_MS}


@pytest.mark.parametrize(
    ("route", "body", "stages"),
    [
        ("fused/v1/score", SCORE, {"history", "retrieve", "rank"}),
        ("split/v1/score", SCORE, {"history", "retrieve", "rank"}),
        ("fused/v1/recommend", RECOMMEND, {"history", "propose", "retrieve", "rank"}),
    ],
)
def test_one_request_is_one_connected_trace_under_the_clients(
    watched: Watched, route: str, body: dict[str, Any], stages: set[str]
) -> None:
    trace, deadline = uuid.uuid4().hex, time.monotonic() + 30
    assert post(f"{watched.url}/{route}", body, {"traceparent": f"00-{trace}-{PARENT}-01"}) == 200
    # A span is written when it ends, so parents come later.
    while not connected(spans := spans_of(watched.logs / "spans", trace), stages):
        assert time.monotonic() < deadline, spans
        time.sleep(0.5)
    assert PARENT in {span["parent"] for span in spans}
    assert len([span for span in spans if span["name"] in stages]) == len(stages)


def test_the_client_may_decide_that_nothing_is_traced(watched: Watched) -> None:
    trace = uuid.uuid4().hex
    assert post(f"{watched.url}/fused/v1/score", SCORE, {"traceparent": f"00-{trace}-{PARENT}-00"}) == 200
    time.sleep(2)
    assert spans_of(watched.logs / "spans", trace) == []


def test_every_metric_of_serve_that_a_query_names_is_exported_with_its_labels(watched: Watched) -> None:
    asked = {(name, label) for query in queries() for name, label in labels_by_name(query) if name.startswith("ray_serve_")}
    text = watched.metrics(*sorted({name for name, _ in asked}))
    for name, label in sorted(asked):
        line = next(line for line in text.splitlines() if line.startswith(f"{name}{{"))
        assert not label or f'{label}="' in line, f"{name} has no label {label}"


SILENT = {
    "Rejections by full deployments", "Store errors a second",
    "Swaps and refusals in an hour", "Log lines left out a second", "User cache: share of hits",
    "User cache: evictions a second", "User cache: memory",
}  # fmt: skip
"""Panels without data where nothing went wrong."""


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
def test_every_panel_has_data_on_a_real_prometheus(watched: Watched, tmp_path: Path) -> None:
    with prometheus_of(watched, tmp_path) as address:
        deadline = time.monotonic() + 90
        while True:
            for topology in ("fused", "split"):
                assert post(f"{watched.url}/{topology}/v1/score", SCORE) == 200
            assert post(f"{watched.url}/fused/v1/recommend", RECOMMEND) == 200
            evaluated = evaluate(address)
            empty = {one.panel for one in evaluated} - {one.panel for one in evaluated if one.series}
            recall = next(one for one in evaluated if one.panel.startswith("Recall against"))
            # A ratio of counts of which none has risen yet is no number.
            if empty <= SILENT and recall.example != "NaN":
                break
            assert time.monotonic() < deadline, empty - SILENT
            time.sleep(3)
    assert 0.9 <= float(recall.example) <= 1
