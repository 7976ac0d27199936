"""Evaluates every query of the dashboard on a Prometheus that scrapes a running service, and says which have no data.

    python -m cluster.grafana.check --prometheus http://127.0.0.1:9090

Empty is right for what did not happen (store errors, rejections, drift before a window is full), and wrong for the rest.
"""

import argparse
import json
import urllib.parse
import urllib.request
from dataclasses import dataclass

from cluster.grafana.dashboard import ROWS


@dataclass(frozen=True)
class Evaluated:
    """A query of a panel: how many series it has now, and one of their values."""

    row: str
    panel: str
    legend: str
    series: int
    example: str


def evaluate(prometheus: str, application: str = ".*", interval: str = "1m") -> list[Evaluated]:
    """Every query of the dashboard, with Grafana's variables filled in; urllib.error.HTTPError for one that is no PromQL."""
    found = []
    for row, panels in ROWS:
        for panel in panels:
            for query, legend in panel.queries:
                filled = query.replace("$application", application).replace("$__rate_interval", interval)
                result = _ask(prometheus, filled)
                example = result[0]["value"][1] if result else "-"
                found.append(Evaluated(row, panel.title, legend, len(result), example))
    return found


def _ask(prometheus: str, query: str) -> list[dict]:
    url = f"{prometheus.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    own = parser.parse_args()
    evaluated = evaluate(own.prometheus)
    for one in evaluated:
        print(f"{one.row:<30} {one.panel:<45} {one.legend:<30} {one.series:>4} series  {one.example}")
    empty = sum(one.series == 0 for one in evaluated)
    print(f"{len(evaluated)} queries, {empty} without data")


if __name__ == "__main__":
    main()
