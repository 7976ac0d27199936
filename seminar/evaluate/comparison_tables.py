"""Markdown tables of a comparison: figures, paired differences, slices, seeds, cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seminar.evaluate.comparison import FLOOR, REFERENCE, RIVAL, Comparison
from seminar.evaluate.comparison_words import decided
from seminar.evaluate.evaluation import FULL, SAMPLED
from seminar.evaluate.report import cell, signed
from seminar.evaluate.summary import ALL, FLAGS, IMPRESSIONS, LENGTH

COLUMNS = {
    SAMPLED: ("NDCG@10", "AUC", "HIT@1", "HIT@5", "HIT@10", "HIT@50", "NDCG@5", "NDCG@50", "MRR"),
    FULL: ("NDCG@10", "HIT@10", "HIT@50", "NDCG@50", "MRR", "AUC"),
    IMPRESSIONS: ("gAUC", "AUC", "log-loss"),
}
"""Shown in the main table; the first decides the order and the best rival."""
PAIRED = {SAMPLED: ("NDCG@10", "AUC", "HIT@10", "MRR"), FULL: ("NDCG@10", "HIT@10", "MRR"), IMPRESSIONS: COLUMNS[IMPRESSIONS]}
SLICED = {SAMPLED: ("NDCG@10", "AUC"), FULL: ("NDCG@10", "AUC"), IMPRESSIONS: ("gAUC", "AUC")}
HEADINGS = {
    (SAMPLED, "AUC"): "AUC (= gAUC)",
    (FULL, "AUC"): "AUC (= gAUC)",
    (FULL, "HIT@10"): "HIT@10 (= Recall@10)",
    (FULL, "HIT@50"): "HIT@50 (= Recall@50)",
}
Lines = Sequence[Mapping[str, Any]]


def main_table(protocol: str, lines: Lines) -> Iterator[str]:
    names = [name for name in COLUMNS[protocol] if any(name in line["metrics"] for line in lines)]
    yield f"| model | seeds | {' | '.join(HEADINGS.get((protocol, name), name) for name in names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    best = next((line["scorer"] for line in ordered(lines, protocol) if line["role"] == RIVAL), None)
    for line in ordered(lines, protocol):
        label = line["scorer"]
        if line["role"] == REFERENCE:
            label = f"**{label}** (reference)"
        elif line["role"] == FLOOR or label == best:
            label += " (floor)" if line["role"] == FLOOR else " (best rival)"
        seeds = len(line["seeds"]) or "–"
        yield f"| {label} | {seeds} | {' | '.join(cell(line['metrics'].get(name)) for name in names)} |"


def paired_table(protocol: str, lines: Lines) -> Iterator[str]:
    yield "| model | metric | difference [users and seeds] | users alone | p | Holm's p | |"
    yield "|---|---|---|---|---|---|---|"
    for line in lines:
        for name in PAIRED[protocol]:
            if name in line["differences"]:
                apart = line["differences"][name]
                users = "–" if apart["low_users"] is None else f"[{apart['low_users']:+.3f}, {apart['high_users']:+.3f}]"
                label = HEADINGS.get((protocol, name), name)
                shown = (line["scorer"], label, signed(apart), users, _p(apart["p"]), _p(apart["p_holm"]), decided(name, apart))
                yield f"| {' | '.join(shown)} |"


def slice_table(protocol: str, lines: Lines, metric: str) -> Iterator[str]:
    parts = list(dict.fromkeys((line["slice"], line["bin"]) for line in lines))
    by = {(line["scorer"], line["slice"], line["bin"]): line for line in lines}
    heads = [f"{_slice_title(*part)} ({by[lines[0]['scorer'], *part]['users']:,} users)" for part in parts]
    yield f"| model | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(parts)}"
    for line in ordered([line for line in lines if line["slice"] == ALL], protocol):
        cells = [cell(by[line["scorer"], *part]["metrics"].get(metric)) for part in parts]
        strong = "**" if line["role"] == REFERENCE else ""
        yield f"| {strong}{line['scorer']}{strong} | {' | '.join(cells)} |"


def seed_table(protocol: str, lines: Lines) -> Iterator[str]:
    names = PAIRED[protocol]
    yield f"| model | seed | {' | '.join(HEADINGS.get((protocol, name), name) for name in names)} |"
    yield f"|---|---|{'---|' * len(names)}"
    for line in ordered(lines, protocol):
        for i, seed in enumerate(line["seeds"]):
            values = [line["metrics"][name]["by_seed"][i] for name in names]
            yield f"| {line['scorer']} | {seed} | {' | '.join('–' if v is None else f'{v:.4f}' for v in values)} |"


def cost_table(comparison: Comparison) -> Iterator[str]:
    """Means over seeds."""
    names = list(dict.fromkeys(run.name for run in comparison.runs))
    times, sizes = (
        sorted({length for run in comparison.runs for length in getattr(run.cost, field)})
        for field in ("score_us_per_target", "search_bytes")
    )
    heads = ["model", "training, s", "pretraining, s", "pairs/s in training", "parameters"]
    heads += [f"µs a target, L = {length:,}" for length in times] + [f"bytes a search reads, L = {length:,}" for length in sizes]
    yield from ("Means over seeds; scoring on one core. L: behaviours of the history.", "")
    yield from (f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}")
    for name in names:
        costs = [run.cost for run in comparison.runs if run.name == name]
        whole = ("train_s", "pretrain_s", "train_pairs_per_s", "parameters")
        cells = [f"{np.mean([getattr(c, part) for c in costs]):,.0f}" for part in whole]
        for field, lengths, digits in (("score_us_per_target", times, 2), ("search_bytes", sizes, 0)):
            for length in lengths:
                known = [getattr(c, field)[length] for c in costs if length in getattr(c, field)]
                cells.append(f"{np.mean(known):,.{digits}f}" if known else "–")
        yield f"| {name} | {' | '.join(cells)} |"


def _slice_title(name: str, part: str) -> str:
    """A slice as a reader calls it."""
    if name == LENGTH:
        return f"history {part}"
    return part if name in FLAGS else "all"


def ordered(lines: Lines, protocol: str) -> list[Mapping[str, Any]]:
    first = COLUMNS[protocol][0]
    return sorted(lines, key=lambda line: -(line["metrics"][first]["value"] or 0))


def sizes(line: Mapping[str, Any]) -> str:
    notes = line["notes"]
    if "mean_others" in notes:
        return f"{line['users']:,} users, {line['rows']:,} lists, {notes['mean_others']:,.1f} other candidates on average"
    return (
        f"{line['users']:,} users, {line['rows']:,} impressions, {notes['positives']:,} taken; "
        f"gAUC over {notes['groups']:,} groups, {notes['groups_of_one_class']:,} with one class skipped; "
        f"log-loss of the base rate {notes['log_loss_of_base_rate']:.3f}"
    )


def _p(p: float | None) -> str:
    return "–" if p is None else f"{p:.4f}"
