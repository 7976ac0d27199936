"""Dashboard, rules and scrape configs: well formed, in step with their sources, naming only what is exported."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.grafana.dashboard import dashboard
from serve.metric_table import BY_NAME, COMMON, METRICS, render
from tests.metric_names import CLUSTER, DASHBOARD, RULES, labels, names, panel_queries, queries, rules

PROMETHEUS = CLUSTER / "prometheus"
OURS = {name: metric for metric in METRICS for name in metric.exported}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
DOCS = CLUSTER.parent / "docs/observability.md"


def test_every_query_names_metrics_of_the_table_of_serve_or_recorded() -> None:
    for query in queries():
        unknown = {name for name in names(query) if not name.startswith("ray_serve_")} - OURS.keys() - RECORDED
        assert names(query), query
        assert not unknown, f"{query} names {unknown}"


def test_every_label_of_a_query_on_ours_is_a_label_of_the_metric() -> None:
    for query in queries():
        ours = [OURS[name] for name in names(query) if name in OURS]
        if len(ours) == len(names(query)) and "label_values" not in query:
            known = {*COMMON, *(label for metric in ours for label in metric.labels)}
            assert labels(query) <= known, query


def test_what_is_wrong_would_be_found() -> None:
    assert names("sum(rate(ray_seminar_request_total[5m]))") - OURS.keys() == {"ray_seminar_request_total"}
    assert labels('sum by (rout) (ray_seminar_requests_total{statu="200"})') == {"rout", "statu"}


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    shown = {name for query in queries() for name in names(query)}
    assert {metric.name for metric in METRICS if not shown & set(metric.exported)} == set()


def test_dashboard_json_is_what_dashboard_py_renders() -> None:
    assert json.loads(json.dumps(dashboard())) == DASHBOARD


def test_panels_have_queries_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({title for title, _ in panel_queries()}) == len([p for p in DASHBOARD["panels"] if p["type"] != "row"])


def test_every_alert_says_what_it_is_and_the_docs_say_what_to_do() -> None:
    text = DOCS.read_text()
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket", "info")
            assert rule["annotations"]["summary"]
            assert f"`{rule['alert']}`" in text, rule["alert"]


def test_docs_have_the_table_of_metrics() -> None:
    assert render() in DOCS.read_text()
    assert set(BY_NAME) == {metric.name for metric in METRICS}


def test_kubernetes_has_the_same_rules_and_the_ports_of_the_pods() -> None:
    monitor, rule = yaml.safe_load_all((PROMETHEUS / "kubernetes.yaml").read_text())
    assert rule["spec"] == RULES
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for file in ("raycluster.yaml", "rayservice.yaml", "rayservice-split.yaml"):
        spec = yaml.safe_load((CLUSTER / "kuberay" / file).read_text())["spec"]
        cluster = spec.get("rayClusterConfig", spec)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]
            (port,) = [p for p in pod["spec"]["containers"][0]["ports"] if p["name"] == endpoint["port"]]
            assert str(port["containerPort"]) == group["rayStartParams"]["metrics-export-port"]
            assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("check", [("rules", "rules.yml"), ("config", "prometheus.yml")])
def test_promtool_accepts_rules_and_config(check: tuple[str, str]) -> None:
    what, file = check
    done = subprocess.run(["promtool", "check", what, str(PROMETHEUS / file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    shutil.copy(Path(__file__).parent / "fixtures/alerts.yml", tmp_path)
    done = subprocess.run(["promtool", "test", "rules", "alerts.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
