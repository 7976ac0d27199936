"""The sink of a replica: Prometheus, by way of Ray's metrics agent on the node."""

import logging
from collections.abc import Mapping

from ray import serve
from ray.util.metrics import Counter, Gauge, Histogram

from serve.metric_table import COMMON, METRICS, Metric
from serve.options import Options
from serve.watch import Watch


def watch_replica(options: Options) -> Watch:
    """The observer of this replica: metrics to Ray, lines to Serve's log."""
    return Watch(RayMetrics(replica_labels()), options, logging.getLogger("ray.serve"))


def replica_labels() -> dict[str, str]:
    """Labels that every metric of this replica carries."""
    context = serve.get_replica_context()
    return dict(zip(COMMON, (context.app_name, context.deployment, context.replica_tag), strict=True))


class RayMetrics:
    """A Sink (`serve/sink.py`) with all metrics of the table. labels: the replica's own."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        made = {metric.name: _make(metric, dict(labels)) for metric in METRICS}
        self._counters = {name: metric for name, metric in made.items() if isinstance(metric, Counter)}
        self._histograms = {name: metric for name, metric in made.items() if isinstance(metric, Histogram)}
        self._gauges = {name: metric for name, metric in made.items() if isinstance(metric, Gauge)}

    def count(self, name: str, value: float, **labels: str) -> None:
        self._counters[name].inc(value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._histograms[name].observe(value, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._gauges[name].set(value, labels)


def _make(metric: Metric, labels: dict[str, str]) -> Counter | Gauge | Histogram:
    keys = (*COMMON, *metric.labels)
    match metric.kind:
        case "counter":
            made = Counter(metric.name, metric.help, keys)
        case "gauge":
            made = Gauge(metric.name, metric.help, keys)
        case "histogram":
            made = Histogram(metric.name, metric.help, list(metric.buckets), keys)
    return made.set_default_tags(labels)
