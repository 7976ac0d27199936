"""The comparison a stranger can judge: comparison.json (every figure), comparison.md (read first) and plots.

Above every table stands what was ranked against what. Query origins have tables of their own, losses are told in words made from
the figures, and whatever was tuned says how often.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from seminar.artifacts import write_atomically
from seminar.config import EvaluateConfig
from seminar.evaluate.comparison import REFERENCE, VARIANT, Comparison
from seminar.evaluate.comparison_plots import draw_comparison
from seminar.evaluate.comparison_tables import (
    HEADINGS,
    SLICED,
    Lines,
    cost_table,
    main_table,
    ordered,
    paired_table,
    seed_table,
    sizes,
    slice_table,
)
from seminar.evaluate.comparison_words import losses, short
from seminar.evaluate.evaluation import FULL, SAMPLED
from seminar.evaluate.intervals import CONFIDENCE
from seminar.evaluate.paired import FLIPS
from seminar.evaluate.report import protocol_sentence
from seminar.evaluate.summary import ALL, IMPRESSIONS

TITLES = {SAMPLED: "Ranking sampled candidates", FULL: "Ranking the whole catalogue", IMPRESSIONS: "Telling taken from shown"}


def write_comparison(
    folder: Path,
    comparison: Comparison,
    config: EvaluateConfig,
    tuning: Sequence[Mapping[str, object]] = (),
    provenance: Mapping[str, object] | None = None,
    lengths: Mapping[str, int] | None = None,
) -> list[str]:
    """Write comparison.json, comparison.md and the plots into an existing folder; returns the plots' names.

    tuning: one row a model, such as {"model", "trials", "best validation NDCG@10", "settings"}. provenance: versions, commit,
    machine, date. lengths: history length of models without ` L=<n>` in their name, so that they are on the plot against L too.
    """
    provenance = provenance or {}
    plots = draw_comparison(folder, comparison, lengths or {})
    protocols = {name: protocol_sentence(config, name) for name in dict.fromkeys(line["protocol"] for line in comparison.lines)}
    document = {
        "reference": comparison.reference,
        "models": dict(comparison.roles),
        "protocols": protocols,
        "evaluation": config.model_dump(mode="json"),
        "method": _method(comparison.reference),
        "results": comparison.lines,
        "losses": losses(comparison),
        "runs": [{"name": r.name, "seed": r.seed, "settings": r.settings, "cost": vars(r.cost)} for r in comparison.runs],
        "tuning": list(tuning),
        "provenance": provenance,
        "plots": plots,
    }
    write_atomically(folder / "comparison.json", json.dumps(_plain(document), allow_nan=False))
    page = "\n".join(_page(comparison, protocols, tuning, provenance, plots))
    write_atomically(folder / "comparison.md", page + "\n")
    return plots


def _page(
    comparison: Comparison,
    protocols: Mapping[str, str],
    tuning: Sequence[Mapping[str, object]],
    provenance: Mapping[str, object],
    plots: Sequence[str],
) -> Iterator[str]:
    yield from (f"# {comparison.reference} beside other models", "", "\n\n".join(_method(comparison.reference)))
    yield from ("", "## In short", "", *short(comparison))
    yield from ("", f"## Where {comparison.reference} loses", "", *losses(comparison))
    for protocol, sentence in protocols.items():
        own = [line for line in comparison.lines if line["protocol"] == protocol]
        yield from ("", f"## {TITLES[protocol]}")
        for origin in dict.fromkeys(line["query_origin"] for line in own):
            lines = [line for line in own if line["query_origin"] == origin]
            # A sample of users is too small to be split by origin here.
            if lines[0]["main"] or protocol != FULL:
                yield from _setting(comparison, protocol, sentence, lines)
    yield from ("", "## Cost", "", *cost_table(comparison))
    if tuning:
        yield from ("", "## Training budget and tuning", "", *_dict_table(tuning))
    yield from (line for name in plots for line in ("", f"![{name.removesuffix('.png').replace('_', ' ')}]({name})"))
    if provenance:
        yield from ("", "## Where these figures come from", "", "| what | value |", "|---|---|")
        yield from (f"| {name} | {_text(value)} |" for name, value in provenance.items())


def _method(reference: str) -> list[str]:
    return [
        f"Figures are means over seeds; brackets hold {CONFIDENCE:.0%} bootstrap intervals over users and seeds. "
        "Higher is better everywhere but for log-loss.",
        f"Differences are model minus {reference} on the very same requests. p: two-sided sign-flip test over users "
        f"({FLIPS:,} flips, all of them where there are fewer) of per-user differences averaged over seeds: users are the unit, "
        "and the trained models at hand are what is tested. The interval over users and seeds says how far other seeds may move "
        "it, and covers users alone where a model has one seed. "
        "*better*, *worse*: Holm's p is below 0.05 and that interval excludes 0.",
        "Holm's p is corrected over the models of one role (rivals, variants, floors) within one metric and slice, not across "
        "metrics and slices. AUC over all impressions is no mean over users and has an interval only.",
        "Ranked lists have one positive each, so their mean AUC over lists is gAUC, every list weighing the same, and Recall@k "
        "is HIT@k. Floors are scorers without a model. Every figure is in comparison.json.",
    ]


def _setting(comparison: Comparison, protocol: str, sentence: str, lines: Lines) -> Iterator[str]:
    """All tables of one protocol and query origin."""
    whole = [line for line in lines if line["slice"] == ALL]
    main = [line for line in whole if line["role"] != VARIANT]
    origin = whole[0]["query_origin"]
    yield from ("", f"### Query origin {origin}: {sizes(whole[0])}", "", f"*{sentence}*", "")
    yield from main_table(protocol, main)
    said = f"*{sentence} Query origin {origin}.*"
    others = [line for line in ordered(main, protocol) if line["role"] != REFERENCE]
    yield from ("", f"**Paired differences to {comparison.reference}**", "", said, "", *paired_table(protocol, others))
    if not whole[0]["main"]:
        return
    variants = [line for line in ordered(whole, protocol) if line["role"] == VARIANT]
    if variants:
        seeds = ", ".join(map(str, variants[0]["seeds"]))
        same = f"Minus {comparison.reference} under the same seeds ({seeds}), not minus its line above."
        yield from ("", f"**Variants: differences to {comparison.reference}**", "", f"{said} {same}", "")
        yield from paired_table(protocol, variants)
    for metric in SLICED[protocol]:
        if any(line["slice"] != ALL for line in lines):
            heading = HEADINGS.get((protocol, metric), metric)
            yield from ("", f"**{heading} by slice**", "", said, "", *slice_table(protocol, lines, metric))
    yield from ("", "**Seeds**", "", said, "", *seed_table(protocol, whole))


def _dict_table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    yield from (f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}")
    yield from (f"| {' | '.join(_text(row.get(name)) for name in heads)} |" for row in rows)


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_text(part)}" for name, part in value.items())
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(value: object) -> object:
    """What JSON can hold: NaN and infinity become None, numpy numbers plain ones, anything else its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
