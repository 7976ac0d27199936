"""The Grafana dashboard as Python: `python cluster/grafana/dashboard.py > cluster/grafana/seminar.json`; a test compares the two.

Import the JSON in Grafana and choose a Prometheus data source. Every query names metrics of `serve/metric_table.py`, of Ray
Serve, or rules of `cluster/prometheus/rules.yml`; a test holds it to that.
"""

import json
from dataclasses import dataclass
from typing import Any

HEIGHT = 7
WIDTH = 24
APP = 'application=~"$application"'


@dataclass(frozen=True)
class Panel:
    """Queries with their legends. unit: Grafana's name. top: the axis' upper end."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    description: str = ""
    top: float | None = None


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{APP}{more}}}[$__rate_interval]))"


def _quantile(q: float, metric: str, by: str, more: str = "") -> str:
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{APP}{more}}}[$__rate_interval])))"


def _quantiles(metric: str, by: str, legend: str, more: str = "") -> tuple[tuple[str, str], ...]:
    return tuple((_quantile(q, metric, by, more), f"{legend} p{round(100 * q)}") for q in (0.5, 0.99))


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Traffic and errors",
        (
            Panel("Requests a second", ((_rate("ray_seminar_requests_total", "route"), "{{route}}"),), "reqps"),
            Panel(
                "Answers that are no success",
                (
                    (_rate("ray_seminar_requests_total", "status", ',status!~"2.."'), "{{status}}"),
                    (_rate("ray_serve_num_http_error_requests_total", "error_code"), "Serve {{error_code}}"),
                ),
                "reqps",
                description="4xx are the client's; 503 of Serve are requests that no replica had room for.",
            ),
            Panel("Share of errors", ((f"seminar:errors:ratio5m{{{APP}}}", "{{application}}"),), "percentunit"),
            Panel("Targets scored a second", ((_rate("ray_seminar_targets_scored_total", "route, task"), "{{route}} {{task}}"),)),
        ),
    ),
    (
        "Latency",
        (
            Panel("Answer, in the replica", _quantiles("ray_seminar_request_seconds", "route", "{{route}}"), "s"),
            Panel(
                "Stages of /v1/score", _quantiles("ray_seminar_stage_seconds", "stage", "{{stage}}", ',route="/v1/score"'), "s"
            ),
            Panel(
                "Stages of /v1/recommend",
                _quantiles("ray_seminar_stage_seconds", "stage", "{{stage}}", ',route="/v1/recommend"'),
                "s",
            ),
            Panel(
                "Answer, at the proxy",
                _quantiles("ray_serve_http_request_latency_ms", "route", "{{route}}"),
                "ms",
                description="With the way through Serve; what it has over the replica's is queueing and hops.",
            ),
        ),
    ),
    (
        "Replicas",
        (
            Panel(
                "Replicas, as Serve's autoscaler wants them",
                (
                    (f"max by (deployment) (ray_serve_autoscaling_target_replicas{{{APP}}})", "{{deployment}} target"),
                    (f"max by (deployment) (ray_serve_autoscaling_desired_replicas{{{APP}}})", "{{deployment}} wanted"),
                ),
            ),
            Panel(
                "Healthy replicas",
                ((f"sum by (deployment) (ray_serve_deployment_replica_healthy{{{APP}}})", "{{deployment}}"),),
            ),
            Panel(
                "In flight and waiting",
                (
                    (f"sum by (deployment) (ray_serve_replica_processing_queries{{{APP}}})", "{{deployment}} in flight"),
                    (f"sum by (deployment) (ray_serve_deployment_queued_queries{{{APP}}})", "{{deployment}} waiting"),
                    (f"sum(ray_seminar_requests_in_flight{{{APP}}})", "requests in ingress replicas"),
                ),
            ),
            Panel("Rejections by full deployments", ((_rate("ray_seminar_rejections_total", "by"), "{{by}}"),), "reqps"),
        ),
    ),
    (
        "Histories, cache and search",
        (
            Panel("History length", _quantiles("ray_seminar_history_behaviours", "application", "{{application}}")),
            Panel("Kept a target", _quantiles("ray_seminar_kept_behaviours", "application", "{{application}}")),
            Panel(
                "Searches by retriever", ((_rate("ray_seminar_retriever_choices_total", "retriever"), "{{retriever}}"),), "ops"
            ),
            Panel(
                "Recall against exact search, last hour",
                ((f"seminar:recall:ratio1h{{{APP}}}", "{{retriever}}"),),
                "percentunit",
                description="A sample of searches, repeated exactly (serve.recall_sample).",
                top=1,
            ),
            Panel(
                "Recall samples a second",
                (
                    (_rate("ray_seminar_recall_samples_total", "retriever"), "{{retriever}}"),
                    (_rate("ray_seminar_recall_dropped_total", "application"), "dropped"),
                ),
            ),
            Panel("User cache: share of hits", ((f"seminar:user_cache_hits:ratio5m{{{APP}}}", "hits"),), "percentunit", top=1),
            Panel(
                "User cache: evictions a second",
                ((_rate("ray_seminar_user_cache_evictions_total", "deployment"), "{{deployment}}"),),
            ),
            Panel("User cache: memory", ((f"sum by (replica) (ray_seminar_user_cache_bytes{{{APP}}})", "{{replica}}"),), "bytes"),
        ),
    ),
    (
        "Scores and bundles",
        (
            Panel(
                "Score drift (PSI)",
                ((f"max by (task, against) (ray_seminar_score_psi{{{APP}}})", "{{task}} against {{against}}"),),
                description="Newest scores against the first of this bundle (start) or the last of the one before it.",
            ),
            Panel(
                "Score quantiles", ((f"avg by (task, quantile) (ray_seminar_score_quantile{{{APP}}})", "{{task}} q{{quantile}}"),)
            ),
            Panel(
                "Replicas by bundle",
                ((f"count by (deployment, version) (ray_seminar_bundle_info{{{APP}}} == 1)", "{{deployment}} {{version}}"),),
            ),
            Panel(
                "Age of the bundle",
                ((f"time() - max by (application) (ray_seminar_bundle_created_seconds{{{APP}}})", "age"),),
                "s",
            ),
            Panel(
                "Swaps and refusals in an hour",
                (
                    (f"sum(increase(ray_seminar_bundle_swaps_total{{{APP}}}[1h]))", "swaps"),
                    (f"sum(increase(ray_seminar_bundle_refusals_total{{{APP}}}[1h]))", "refusals"),
                ),
            ),
        ),
    ),
    (
        "Store and log",
        (
            Panel("Append until durable", _quantiles("ray_seminar_append_seconds", "application", "{{application}}"), "s"),
            Panel(
                "Events a second",
                (
                    (_rate("ray_seminar_events_accepted_total", "application"), "accepted"),
                    (_rate("ray_seminar_events_duplicate_total", "application"), "duplicate"),
                ),
            ),
            Panel("Store errors a second", ((_rate("ray_seminar_store_errors_total", "operation"), "{{operation}}"),)),
            Panel("Log lines left out a second", ((_rate("ray_seminar_log_dropped_total", "deployment"), "{{deployment}}"),)),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    panels, y = [], 0
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1)})
        width = WIDTH // min(len(row), 4)
        for number, panel in enumerate(row):
            across, down = number % 4, number // 4
            panels.append(_panel(panel, _place(across * width, y + 1 + down * HEIGHT, width, HEIGHT)))
        y += 1 + HEIGHT * -(-len(row) // 4)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "seminar-service",
        "title": "SEMINAR service",
        "tags": ["seminar", "ray-serve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_source(), _application()]},
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "$source"}
    limits: dict[str, float] = {"min": 0} | ({} if panel.top is None else {"max": panel.top})
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, **limits}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend, "datasource": source}
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _application() -> dict[str, Any]:
    query = "label_values(ray_seminar_bundle_info, application)"
    return {
        "name": "application",
        "label": "Application",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$source"},
        "query": {"query": query, "refId": "application"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
