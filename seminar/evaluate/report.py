"""The report a stranger can judge a model by: report.json (every figure), report.md (read first), PNG plots.

The protocol stands in one sentence above every table, floors stand beside the model, and every figure names its query origin, its
number of users and its interval.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from seminar.artifacts import write_atomically
from seminar.config import EvaluateConfig
from seminar.evaluate.evaluation import FULL, SAMPLED
from seminar.evaluate.intervals import CONFIDENCE, REPLICATES
from seminar.evaluate.plots import draw_plots
from seminar.evaluate.protocol import FLOORS, IN_HISTORY, POPULARITY
from seminar.evaluate.summary import ALL, FLAGS, IMPRESSIONS, LENGTH
from seminar.retrieval.recall import Recall

RecordLine = Mapping[str, Any]
SHOWN = ("HIT@1", "HIT@10", "HIT@50", "NDCG@10", "NDCG@50", "MRR", "AUC")
SLICE_METRIC = "NDCG@10"


@dataclass(frozen=True)
class Facts:
    """What figures mean nothing without. versions: artefact kind to version. data: counts of the pairs artefact."""

    config: EvaluateConfig
    versions: Mapping[str, str]
    data: Mapping[str, Any]
    skipped: Mapping[str, int]


def protocol_sentence(config: EvaluateConfig, protocol: str = SAMPLED) -> str:
    """What was ranked against what, in one or two sentences that need no other page."""
    which = "One held-out behaviour a user" if config.one_per_user else "Every held-out behaviour"
    held = f"{which} ({config.split} split, drawn with seed {config.seed})"
    if protocol == FULL:
        return (
            f"{held} ranked among the whole catalogue, for about {config.full_ranking_users} users; items of the history stay in."
        )
    if protocol == IMPRESSIONS:
        return (
            "All logged rows of each held-out request: taken = positive, shown and not taken = negative. "
            "gAUC is by user (and query), weighted by impressions; log-loss is in nats."
        )
    kind = {
        "same_category": "items of its own category (all of them where there are fewer)",
        "uniform": "items drawn uniformly from the catalogue",
        "popularity": "items drawn by training popularity",
    }[config.negatives]
    outside = {"history": "that the user never took, before or after", "request": "that are not in the held-out request"}
    return (
        f"{held} ranked among {config.num_negatives} {kind} {outside[config.exclude]}; every candidate carries the held-out "
        "behaviour's query. Ties count as their expectation under random order."
    )


def write_report(
    folder: Path,
    facts: Facts,
    lines: Sequence[RecordLine],
    curves: Mapping[str, pa.Table],
    recall: Sequence[Recall] = (),
) -> list[str]:
    """Write report.json, report.md and the plots into an existing folder; returns the plots' names.

    lines: from `summarise`. curves: stage to its curve.parquet. recall: from `recall_curve`, where codes were fitted.
    """
    plots = draw_plots(folder, lines, curves, recall)
    protocols = {name: protocol_sentence(facts.config, name) for name in dict.fromkeys(line["protocol"] for line in lines)}
    document = {
        "protocols": protocols,
        "settings": facts.config.model_dump(mode="json"),
        "interval": {"method": "percentile bootstrap over users", "confidence": CONFIDENCE, "replicates": REPLICATES},
        "query_origins": sorted({line["query_origin"] for line in lines}),
        "versions": dict(facts.versions),
        "data": dict(facts.data),
        "skipped": dict(facts.skipped),
        "results": list(lines),
        "recall_of_codes": [{"k": r.k, "codes_alone": r.raw, "rescored": r.rescored} for r in recall],
        "plots": plots,
    }
    write_atomically(folder / "report.json", json.dumps(document, indent=1, allow_nan=False))
    write_atomically(folder / "report.md", "\n".join(_markdown(facts, lines, protocols, recall, plots)) + "\n")
    return plots


def headline(lines: Sequence[RecordLine]) -> list[RecordLine]:
    """The lines to print after an evaluation: the first query origin's sampled ranking, all pairs, one a scorer, models first."""
    chosen = [line for line in lines if (line["protocol"], line["slice"]) == (SAMPLED, ALL)]
    return _models_first([line for line in chosen if line["query_origin"] == chosen[0]["query_origin"]])


def table(lines: Sequence[RecordLine], metrics: Sequence[str]) -> list[str]:
    """Markdown table of these lines, one a scorer, with intervals."""
    names = [name for name in metrics if any(name in line["metrics"] for line in lines)]
    rows = [f"| scorer | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for line in _models_first(lines):
        strong = "" if line["scorer"] in FLOORS else "**"
        cells = [cell(line["metrics"].get(name), strong) for name in names]
        rows.append(f"| {strong}{line['scorer']}{strong} | {' | '.join(cells)} |")
    return rows


def _markdown(
    facts: Facts,
    lines: Sequence[RecordLine],
    protocols: Mapping[str, str],
    recall: Sequence[Recall],
    plots: Sequence[str],
) -> Iterator[str]:
    yield from ("# Evaluation", "")
    yield f"Brackets hold {CONFIDENCE:.0%} intervals over users ({REPLICATES:,} bootstrap draws)."
    yield "Higher is better everywhere but for log-loss. All metrics, at 1, 5, 10 and 50, are in report.json."
    yield f"**{POPULARITY}** and **{IN_HISTORY}** are floors: scorers without a model, on the very same candidates."
    titles = {SAMPLED: "Ranking sampled candidates", FULL: "Ranking the whole catalogue", IMPRESSIONS: "Telling taken from shown"}
    for protocol, sentence in protocols.items():
        yield from ("", f"## {titles[protocol]}", "", f"*{sentence}*")
        chosen = [line for line in lines if line["protocol"] == protocol and line["slice"] == ALL]
        origins = list(dict.fromkeys(line["query_origin"] for line in chosen))
        # A sample of users is too small to be split by origin here.
        for origin in origins[:1] if protocol == FULL and "+" in origins[0] else origins:
            own = [line for line in chosen if line["query_origin"] == origin]
            yield from ("", f"### Query origin {origin}: {_sizes(own[0])}", "")
            yield from table(own, ("AUC", "gAUC", "log-loss") if protocol == IMPRESSIONS else SHOWN)
            yield from _gains(own)
        yield from _slices([line for line in lines if line["protocol"] == protocol and line["slice"] != ALL])
    if recall:
        yield from (
            "",
            "## What codes find of the exact top-K",
            "",
            "| K | codes alone | after exact re-scoring |",
            "|---|---|---|",
        )
        yield from (f"| {r.k} | {r.raw:.3f} | {r.rescored:.3f} |" for r in recall)
    yield from (line for name in plots for line in ("", f"![{name.removesuffix('.png').replace('_', ' ')}]({name})"))
    yield from _origin_of_figures(facts)


def _gains(lines: Sequence[RecordLine]) -> Iterator[str]:
    for line in lines:
        for other, figures in line.get("gains", {}).items():
            said = [f"{name} {signed(figures[name])}" for name in ("HIT@10", SLICE_METRIC, "AUC", "gAUC") if name in figures]
            yield from ("", f"{line['scorer']} minus {other}, paired by user: {', '.join(said)}.")
        if "log_loss_of_base_rate" in line["notes"]:
            yield from (
                "",
                f"Saying the share of taken rows every time has log-loss {line['notes']['log_loss_of_base_rate']:.3f}.",
            )


def _slices(lines: Sequence[RecordLine]) -> Iterator[str]:
    titles = {LENGTH: "history length (behaviours)", **{name: f"{no} / {yes}" for name, (no, yes) in FLAGS.items()}}
    for origin in dict.fromkeys(line["query_origin"] for line in lines):
        yield from ("", f"### {SLICE_METRIC} by slice, query origin {origin}", "")
        own = [line for line in lines if line["query_origin"] == origin]
        scorers = [line["scorer"] for line in _models_first(own)]
        scorers = list(dict.fromkeys(scorers))
        yield f"| slice | users | {' | '.join(scorers)} |"
        yield f"|---|---|{'---|' * len(scorers)}"
        for name, part in dict.fromkeys((line["slice"], line["bin"]) for line in own):
            by = {line["scorer"]: line for line in own if (line["slice"], line["bin"]) == (name, part)}
            cells = [cell(by[s]["metrics"][SLICE_METRIC]) if s in by else "" for s in scorers]
            label = f"{titles[name]}: {part}" if name == LENGTH else part
            yield f"| {label} | {next(iter(by.values()))['users']:,} | {' | '.join(cells)} |"


def _origin_of_figures(facts: Facts) -> Iterator[str]:
    yield from ("", "## Where these figures come from", "", "| artefact | version |", "|---|---|")
    yield from (f"| {kind} | `{version}` |" for kind, version in facts.versions.items())
    yield ""
    counts = [f"{value:,} {name}" for name, value in facts.data.items() if isinstance(value, int)]
    yield f"Data: {', '.join(counts)}." if counts else ""
    if facts.skipped:
        yield f"Not scored: {', '.join(f'{count:,} {reason}' for reason, count in facts.skipped.items())}."


def _models_first(lines: Sequence[RecordLine]) -> list[RecordLine]:
    return sorted(lines, key=lambda line: FLOORS[::-1].index(line["scorer"]) if line["scorer"] in FLOORS else -1)


def _sizes(line: RecordLine) -> str:
    runs = f", mean of {line['runs']} runs" if line["runs"] > 1 else ""
    notes = line["notes"]
    if "mean_others" in notes:
        return f"{line['users']:,} users, {line['rows']:,} pairs, {notes['mean_others']:,.1f} other candidates on average{runs}"
    return (
        f"{line['users']:,} users, {line['rows']:,} impressions, {notes['positives']:,} taken; "
        f"gAUC over {notes['groups']:,} groups, {notes['groups_of_one_class']:,} with one class skipped{runs}"
    )


def cell(figure: Mapping[str, Any] | None, strong: str = "") -> str:
    if figure is None or figure["value"] is None:
        return "–"
    ends = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{strong}{figure['value']:.3f}{strong}{ends}"


def signed(figure: Mapping[str, float | None]) -> str:
    if figure["value"] is None or figure["low"] is None:
        return "–"
    return f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"
