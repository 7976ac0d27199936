"""Every metric of the service, in one table: what the replicas export, what the documentation says, what queries may name.

Ray puts `ray_` before a name and `_total` behind a counter's, and adds labels of its own (SessionName, WorkerId, ...). All of
ours carry `application`, `deployment` and `replica` besides their own labels.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

COMMON = ("application", "deployment", "replica")
"""Labels of every metric."""

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LENGTHS = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
KEPT = (1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 200.0, 500.0, 1000.0)


@dataclass(frozen=True)
class Metric:
    """One metric as Ray is told it. buckets: upper bounds of a histogram's."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """Names as Prometheus sees them."""
        name = f"ray_{self.name}"
        match self.kind:
            case "counter":
                return (f"{name}_total",)
            case "gauge":
                return (name,)
            case "histogram":
                return tuple(f"{name}_{part}" for part in ("bucket", "sum", "count"))


def _counter(name: str, labels: tuple[str, ...], help_: str) -> Metric:
    return Metric(f"seminar_{name}", "counter", labels, help_)


def _gauge(name: str, labels: tuple[str, ...], help_: str) -> Metric:
    return Metric(f"seminar_{name}", "gauge", labels, help_)


def _histogram(name: str, labels: tuple[str, ...], help_: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"seminar_{name}", "histogram", labels, help_, buckets)


METRICS = (
    _counter("requests", ("route", "status"), "HTTP requests answered by an ingress, by route and status."),
    _histogram(
        "request_seconds", ("route",), "From the first byte that the replica reads to the last one of its answer.", SECONDS
    ),
    _gauge("requests_in_flight", (), "Requests that an ingress replica works on."),
    _histogram(
        "stage_seconds",
        ("stage", "route", "topology"),
        "Stages of one user's answer: history, propose, retrieve (GSU), rank (ESU). Without the wait for a thread or a replica.",
        SECONDS,
    ),
    _counter("targets_scored", ("route", "task"), "Targets that got a score."),
    _histogram("history_behaviours", (), "Behaviours of the history that the GSU searched.", LENGTHS),
    _histogram("kept_behaviours", (), "Behaviours that the GSU kept a target, the mean over a user's targets.", KEPT),
    _counter("retriever_choices", ("retriever",), "Searches of a history, by the method that was chosen for them."),
    _counter("recall_checked", ("retriever",), "Behaviours that exact search keeps, over the sampled searches."),
    _counter("recall_found", ("retriever",), "Those of them that the served search kept; by recall_checked it is online recall."),
    _counter("recall_samples", ("retriever",), "Searches that were repeated exactly."),
    _counter("recall_dropped", (), "Sampled searches that were not repeated because too many were waiting."),
    _gauge(
        "score_psi",
        ("task", "against"),
        "Population stability index of the newest scores against `start`, the first ones of the bundle in use, or `before`, the "
        "last ones of the bundle before it.",
    ),
    _gauge("score_quantile", ("task", "quantile"), "Quantile of the newest scores (probabilities)."),
    _gauge("bundle_info", ("version",), "1 for the bundle in use, 0 for one that was."),
    _gauge("bundle_created_seconds", (), "Unix time at which the bundle in use was made."),
    _counter("bundle_swaps", (), "Bundles taken after the first."),
    _counter("bundle_refusals", (), "Bundles refused; GET /v1/bundle says why."),
    _counter("store_errors", ("operation",), "Reads and appends of histories that failed through no fault of the client."),
    _histogram("append_seconds", (), "POST /v1/events: until the behaviours are durable.", SECONDS),
    _counter("events_accepted", (), "Behaviours stored."),
    _counter("events_duplicate", (), "Behaviours whose event id was there already."),
    _counter("rejections", ("by",), "Calls to another deployment that had no room or no healthy replica."),
    _counter("user_cache_hits", (), "Histories found in the replica's user cache, as new as the store's."),
    _counter("user_cache_misses", (), "Histories read from the store."),
    _counter("user_cache_evictions", (), "Users that made room for others in the user cache."),
    _gauge("user_cache_bytes", (), "Memory of the user cache."),
    _counter("log_dropped", (), "Slow or sampled requests without a log line, over the limit of lines a second."),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def render() -> str:
    """The table in Markdown."""
    rows = [
        f"| `{metric.exported[0]}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(["| metric | kind | labels | what |", "|---|---|---|---|", *rows])
