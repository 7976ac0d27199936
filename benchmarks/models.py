"""Does SEMINAR beat its rivals, where, and at what cost? The goals of the comparison, from its figures.

    python -m benchmarks.models [--config configs/compare.toml]

Runs `seminar compare` first; a comparison that is finished is found again. Rivals are trained on the same data, channels,
features, steps, tuning budget and protocol; "as published" are the same rivals with the inputs of their papers.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, publish, run
from seminar.artifacts import Store
from seminar.compare.plan import PUBLISHED
from seminar.config import Settings, load_settings
from seminar.evaluate.comparison import RIVAL, VARIANT
from seminar.evaluate.evaluation import SAMPLED
from seminar.models import NAMES
from workflows import compare
from workflows.runtime import absolute

Line = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/compare.toml"))
    config = parser.parse_args().config
    settings = absolute(load_settings(config))
    report = compare.run(settings, Store(settings.workdir))
    document = json.loads(report.file("comparison.json").read_text())
    # One file of rows a grid: models.json for compare.toml, models_long.json for compare_long.toml.
    publish(config.stem.replace("compare", "models"), list(goals(document, settings)))


def goals(document: Mapping[str, Any], settings: Settings) -> Iterator[Goal]:
    """Gains over the best rival of each metric, with the ends of their intervals and p; L; cost."""
    lines = [line for line in document["results"] if line["protocol"] == SAMPLED and line["main"]]
    published = {f"{NAMES[kind]} / {PUBLISHED}" for kind in settings.compare.models[1:]}
    for label, chosen in (
        ("best rival, same inputs", [line for line in lines if line["role"] == RIVAL]),
        ("best rival as published", [line for line in lines if line["scorer"] in published]),
    ):
        yield from gains(label, [line for line in chosen if line["slice"] == "all"], {"AUC": 0.01, "NDCG@10": 0.02})
        unseen = [line for line in chosen if line["bin"] == "unseen in training"]
        yield from gains(f"{label}, items unseen in training", unseen, {"AUC": 0.05})
    variants = [line for line in lines if line["role"] == VARIANT and line["slice"] == "all"]
    for line in variants:
        if line["scorer"] not in published and not line["scorer"].startswith(NAMES[settings.compare.models[0]]):
            yield from gains("variant", [line], {"AUC": None, "NDCG@10": None})
    yield from _by_length(lines, settings)
    yield from _cost(document)


def gains(label: str, rivals: Sequence[Line], targets: Mapping[str, float | None]) -> Iterator[Goal]:
    """SEMINAR minus the rival with the best value of each metric, both under the rival's seeds."""
    for metric, target in targets.items():
        if not rivals:
            return
        best = max(rivals, key=lambda line: line["metrics"][metric]["value"])
        apart = best["differences"][metric]
        name = "gAUC" if metric == "AUC" else metric
        where = f"same category, last basket, {best['users']} users, {best['runs']} seeds"
        yield Goal(f"{name} gain over {label} ({best['scorer']}), {where}", -apart["value"], "", target)
        ends = f"  lower end of its 95 % interval over users and seeds, at most {-apart['low']:+.4f}"
        yield Goal(ends, -apart["high"], "", None if target is None else 0.0)
        tested = "  p of the paired test over users, corrected for the others of its kind"
        yield Goal(tested, apart["p_holm"], "", None if target is None else 0.01, at_least=False)


def _by_length(lines: Sequence[Line], settings: Settings) -> Iterator[Goal]:
    found = {line["scorer"]: line for line in lines if line["slice"] == "all"}
    curve = {n: found[f"SEMINAR L={n}"] for n in settings.compare.lengths if f"SEMINAR L={n}" in found}
    for shorter, longer in zip(list(curve)[:-1], list(curve)[1:], strict=True):
        rise = curve[longer]["metrics"]["NDCG@10"]["value"] - curve[shorter]["metrics"]["NDCG@10"]["value"]
        yield Goal(f"NDCG@10 from L = {shorter} to {longer}, seed {settings.compare.paired_seeds[0]}", rise, "", 0.0)


def _cost(document: Mapping[str, Any]) -> Iterator[Goal]:
    cost = {entry["name"]: entry["cost"]["score_us_per_target"] for entry in document["runs"]}
    if "DIN" not in cost:
        return
    for length in cost["SEMINAR"]:
        ratio = cost["DIN"][length] / cost["SEMINAR"][length]
        yield Goal(f"DIN's cost a target over SEMINAR's, L = {length}, one core", ratio, "x", 10.0 if length == "4000" else None)
        for name in ("SEMINAR", "DIN"):
            yield Goal(f"  {name}", cost[name][length], "us a target")


if __name__ == "__main__":
    run(main)
