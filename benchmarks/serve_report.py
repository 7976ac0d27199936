"""Figures and plots of the load test, from the blocks that the load generator counted."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Goal
from benchmarks.histogram import Histogram
from benchmarks.serve_phase import CLOSED, OPEN, OVERLOAD, RIVALS, requests_a_second
from benchmarks.serve_world import PLANTED

DOCS = Path(__file__).resolve().parent.parent / "docs"
RIVAL_NAMES = {
    "channels": "exact attention over all, SEMINAR's four channels",
    "id": "exact attention over all, one vector an item",
}
FASTER = {10_240: 10.0, 102_400: 50.0}


def goals(results: Sequence[dict[str, Any]]) -> Iterator[Goal]:
    """Every claim of the service's speed, with what it is measured by."""
    for result in results:
        phase = result["phase"]
        where = f"{phase['ingress']}, {phase['topology']}, {phase['replicas']} replica{'s' * (phase['replicas'] > 1)}"
        default = (phase["ingress"], phase["topology"], phase["replicas"]) == ("haproxy", "fused", 1)
        yield from _closed(result["rows"], where, default=default)
        yield Goal(f"  {where}: served score - offline score, largest difference", result["difference"], "", 1e-5, at_least=False)
        failures = [failure for row in result["rows"] for failure in row["failures"]]
        yield Goal(
            f"  {where}: failed requests of {sum(r['sent'] for r in result['rows']):,}", len(failures), "", 0, at_least=False
        )
        if phase["replicas"] > 1:
            for how, shares in result["routed"].items():
                for what, share in shares.items():
                    yield Goal(f"  {where}: {what}, {how}", share, "")
        if phase["rivals"]:
            yield from _long(result)
        if phase["open_loop"]:
            yield from _open(result["rows"])


def _closed(rows: Sequence[dict[str, Any]], where: str, *, default: bool) -> Iterator[Goal]:
    mine, least = latency(rows, "seminar", "closed 1"), latency(rows, "trivial", "closed 1")
    speed, most = (requests_a_second(rows, service, "closed 32") for service in ("seminar", "trivial"))
    beside = "by the trivial endpoint's, concurrency"
    ratio, target = mine.ms(0.5) / least.ms(0.5), 2.5 if default else None
    yield Goal(f"{where}: /v1/score p50 {beside} 1", ratio, "x", target, at_least=False)
    yield Goal(f"{where}: /v1/score requests/s {beside} 32", speed / most, "x", 0.4 if default else None)
    inside = [ms for row in rows if (row["service"], row["block"]) == ("seminar", "closed 1") for ms in row["inside_ms"]]
    overhead = mine.ms(0.5) - float(np.median(inside))
    target = 1.2 if default else None
    yield Goal(f"{where}: p50 beyond GSU and ESU by the trivial p50", overhead / least.ms(0.5), "x", target, at_least=False)
    yield Goal(f"  {where}: GSU and ESU, p50", float(np.median(inside)), "ms")
    for concurrency in CLOSED:
        for service in ("seminar", "trivial"):
            block, label = f"closed {concurrency}", "/v1/score" if service == "seminar" else "trivial"
            yield Goal(f"  {where}: {label}, concurrency {concurrency}, p50", latency(rows, service, block).ms(0.5), "ms")
            yield Goal(f"  {where}: {label}, concurrency {concurrency}, p99", latency(rows, service, block).ms(0.99), "ms")
            yield Goal(f"  {where}: {label}, concurrency {concurrency}", requests_a_second(rows, service, block), "requests/s")
    yield Goal(f"  {where}: /v1/score of a user's first request, p50", latency(rows, "seminar", "cold").ms(0.5), "ms")
    busiest = [row for row in rows if row["block"] == "closed 32"]
    share = sum(row["cpu_s"] for row in busiest) / sum(row["seconds"] for row in busiest)
    yield Goal(f"  {where}: load generator at concurrency 32", share, "cores")


def _long(result: dict[str, Any]) -> Iterator[Goal]:
    rows, threads, served = result["rows"], result["threads"], f"{result['phase']['replicas']} replicas"
    for length in PLANTED:
        planted, grown = result["pairs"][str(length)]
        yield Goal(f"  L = {length:,}: distinct (item, query) of a planted history", planted, "")
        yield Goal(f"  L = {length:,}: of a household, were it to grow as the 100 longest did", grown, "")
        block = f"length {length}"
        mine = requests_a_second(rows, "seminar", block)
        for rival in RIVALS[::-1]:
            target = FASTER[length] if rival == "channels" else None
            factor = mine / requests_a_second(rows, rival, block)
            yield Goal(f"L = {length:,}: /v1/score requests/s, {served}, by {RIVAL_NAMES[rival]}", factor, "x", target)
        yield Goal(f"  L = {length:,}: /v1/score, {served}", mine, "requests/s")
        for rival in RIVALS:
            how = "torch threads {}, requests at once {}".format(*threads[rival][str(length)])
            yield Goal(f"  L = {length:,}: {RIVAL_NAMES[rival]} ({how})", requests_a_second(rows, rival, block), "requests/s")


def _open(rows: Sequence[dict[str, Any]]) -> Iterator[Goal]:
    peak = requests_a_second(rows, "seminar", "closed 32")
    goodput = requests_a_second(rows, "seminar", "overload")
    yield Goal(f"goodput at {OVERLOAD:g} times the capacity by the peak", goodput / peak, "x", 0.8)
    (overload,) = (row for row in rows if row["block"] == "overload")
    yield Goal("  of these, refused with 503 and Retry-After", overload["refused"] / max(overload["sent"], 1), "")
    yield Goal("requests/s after the overload by the peak", requests_a_second(rows, "seminar", "after overload") / peak, "x", 0.8)
    for share in OPEN:
        found = latency(rows, "seminar", f"open {share:g}")
        for quantile in (0.5, 0.99):
            yield Goal(
                f"  Poisson arrivals at {share:g} of the peak, p{100 * quantile:g} from due time", found.ms(quantile), "ms"
            )


def scaling_goals(result: dict[str, Any]) -> Iterator[Goal]:
    """Replicas that came and went, and what that cost."""
    load, calm = result["marks"]["load"], result["marks"]["calm"]
    came = [at for at, replicas in result["replicas"] if load <= at < calm and replicas > 1]
    gone = [at for at, replicas in result["replicas"] if at >= calm and replicas == 1]
    failures = [failure for row in result["rows"] for failure in row["failures"]]
    sent = sum(row["sent"] for row in result["rows"])
    yield Goal("autoscaling: most replicas under concurrency 8", max(n for at, n in result["replicas"] if at >= load), "", 2)
    yield Goal("autoscaling: replicas at the end", result["replicas"][-1][1], "", 1, at_least=False)
    yield Goal(f"autoscaling: failed or refused requests of {sent:,}", len(failures) + _refused(result), "", 0, at_least=False)
    yield Goal("  autoscaling: the second replica answers after", min(came, default=math.inf) - load, "s")
    yield Goal("  autoscaling: it is gone after the load by", min(gone, default=math.inf) - calm, "s")


def _refused(result: dict[str, Any]) -> int:
    return sum(row["refused"] for row in result["rows"])


def latency(rows: Sequence[dict[str, Any]], service: str, block: str) -> Histogram:
    """All rounds of a block together."""
    found = [row for row in rows if (row["service"], row["block"]) == (service, block)]
    return sum((Histogram.from_json(row["latency"]) for row in found), Histogram())


def draw(results: Sequence[dict[str, Any]]) -> None:
    """docs/serve_latency.png: percentiles; docs/serve_length.png: requests a second against the length of the history."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, concurrency in zip(axes, (1, 32), strict=True):
        for result in (r for r in results if (r["phase"]["topology"], r["phase"]["replicas"]) == ("fused", 1)):
            for service, style in (("seminar", "-"), ("trivial", ":")):
                share, ms = zip(*latency(result["rows"], service, f"closed {concurrency}").curve(), strict=True)
                label = f"{'/v1/score' if service == 'seminar' else 'trivial'}, {result['phase']['ingress']}"
                axis.plot(1 / (1 - np.minimum(share, 0.9995)), ms, style, label=label)
        axis.set(xscale="log", yscale="log", title=f"concurrency {concurrency}", xlabel="percentile")
        axis.set_xticks([1, 2, 10, 100, 1000], ["0", "50", "90", "99", "99.9"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    figure.savefig(DOCS / "serve_latency.png", bbox_inches="tight", dpi=110)
    for result in (r for r in results if r["phase"]["rivals"]):
        figure, axis = pyplot.subplots(figsize=(6, 4))
        for service, label in {"seminar": "/v1/score", **RIVAL_NAMES}.items():
            speeds = [requests_a_second(result["rows"], service, f"length {length}") for length in PLANTED]
            axis.plot(list(PLANTED), speeds, "o-", label=label)
        axis.set(xscale="log", yscale="log", xlabel="behaviours of the user", ylabel="requests/s")
        axis.grid(alpha=0.3)
        axis.legend()
        figure.savefig(DOCS / "serve_length.png", bbox_inches="tight", dpi=110)
