"""Where metrics go: Prometheus through Ray (`serve/metrics.py`), or sums in this process."""

from collections import defaultdict
from typing import Protocol

from serve.metric_table import BY_NAME

Labels = tuple[tuple[str, str], ...]


class Sink(Protocol):
    """Takes metrics of `serve/metric_table.py`; labels are the metric's own, all of them."""

    def count(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        ...

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        ...


class Sums:
    """Keeps counters added up, gauges as they are and every value of a histogram; for one process and for tests."""

    def __init__(self) -> None:
        self.counters: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self.gauges: dict[tuple[str, Labels], float] = {}
        self.values: defaultdict[tuple[str, Labels], list[float]] = defaultdict(list)

    def count(self, name: str, value: float, **labels: str) -> None:
        self.counters[_key(name, "counter", labels)] += value

    def observe(self, name: str, value: float, **labels: str) -> None:
        self.values[_key(name, "histogram", labels)].append(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        self.gauges[_key(name, "gauge", labels)] = value


def _key(name: str, kind: str, labels: dict[str, str]) -> tuple[str, Labels]:
    metric = BY_NAME[name]
    assert metric.kind == kind, f"{name} is a {metric.kind}"
    assert set(labels) == set(metric.labels), f"{name} has labels {metric.labels}, got {sorted(labels)}"
    return name, tuple(sorted(labels.items()))
