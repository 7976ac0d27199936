"""Names of metrics in PromQL, and the queries of the dashboard and of the rules."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).resolve().parent.parent / "cluster"
DASHBOARD: dict[str, Any] = json.loads((CLUSTER / "grafana/seminar.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((CLUSTER / "prometheus/rules.yml").read_text())

SELECTOR = re.compile(r"\b(ray_[a-z0-9_]+|seminar:[a-z0-9_:]+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"([a-zA-Z_]+)\s*(?:=~|!~|!=|=)")
BY = re.compile(r"\bby \(([^)]*)\)")

RENAMED = {"le"}
"""Labels of Prometheus itself."""


def names(query: str) -> set[str]:
    """Metrics and recorded rules that a query names."""
    return {match[1] for match in SELECTOR.finditer(query)}


def labels(query: str) -> set[str]:
    """Labels that a query selects or groups by."""
    selected = {label for match in SELECTOR.finditer(query) for label in LABEL.findall(match[2] or "")}
    grouped = {label.strip() for match in BY.finditer(query) for label in match[1].split(",")}
    return (selected | grouped) - RENAMED


def labels_by_name(query: str) -> set[tuple[str, str]]:
    """Each metric with each label that it is selected by, or grouped by where it is the only metric; "" for none."""
    found = {(match[1], label) for match in SELECTOR.finditer(query) for label in ["", *LABEL.findall(match[2] or "")]}
    only = names(query)
    return found | {(name, label) for name in only for label in labels(query) if len(only) == 1}


def rules() -> Iterator[dict[str, Any]]:
    """Every rule, recording ones too."""
    for group in RULES["groups"]:
        yield from group["rules"]


def panel_queries() -> Iterator[tuple[str, str]]:
    """Title and query of every target of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def queries() -> Iterator[str]:
    """Every query of the dashboard and of the rules."""
    yield from (rule["expr"] for rule in rules())
    yield from (query for _, query in panel_queries())
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
