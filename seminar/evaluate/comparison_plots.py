"""Plots of a comparison: metrics, slices, cost, history length, ablations, training loss. Needs the extra `plot`.

Models are named where they stand, not in legends; the reference is filled and bold, floors are grey, so that black and white
suffices. Every point carries its 95 % interval over users and seeds.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seminar.evaluate.comparison import FLOOR, REFERENCE, VARIANT, Comparison
from seminar.evaluate.evaluation import SAMPLED
from seminar.evaluate.labels import place_labels, spread
from seminar.evaluate.plots import INK, MODELS, ends_of, new_figure, put_title, require_matplotlib, save, smooth
from seminar.evaluate.summary import ALL, LENGTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC = "NDCG@10"
PANELS = {"NDCG@10": "NDCG@10", "HIT@10": "HIT@10", "MRR": "MRR", "AUC": "AUC (= gAUC)"}
OTHERS, FLOOR_COLOUR = "#444444", "#8C8C8C"
BARS = "95 % interval over users and seeds"
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^v<>PX"
_AT_LENGTH = re.compile(r"^(.*) L=(\d+)$")
Lines = Sequence[Mapping[str, Any]]
Curves = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Model name -> history length -> metric -> value, low, high."""


def draw_comparison(folder: Path, comparison: Comparison, lengths: Mapping[str, int] | None = None) -> list[str]:
    """Write the PNG files that the data allows, for each whole setting of sampled ranking; returns their names.

    lengths: history length of models without ` L=<n>` in their name. ConfigError if matplotlib is not installed.
    """
    require_matplotlib()
    drawn: "dict[str, Figure]" = {}
    sampled = [line for line in comparison.lines if line["protocol"] == SAMPLED and line["main"]]
    origins = list(dict.fromkeys(line["query_origin"] for line in sampled))
    for origin in origins:
        own = [line for line in sampled if line["query_origin"] == origin]
        suffix = f"_{origin.replace('+', '_')}" if len(origins) > 1 else ""
        whole = [line for line in own if line["slice"] == ALL]
        models, variants = ([line for line in whole if (line["role"] == VARIANT) is is_one] for is_one in (False, True))
        drawn[f"main_metrics{suffix}.png"] = _main(models)
        by_length = [line for line in own if line["slice"] == LENGTH and line["role"] != VARIANT]
        drawn[f"by_history_length{suffix}.png"] = _by_length(by_length, models)
        if any(run.cost.score_us_per_target for run in comparison.runs if comparison.roles[run.name] != VARIANT):
            drawn[f"quality_and_cost{suffix}.png"] = _cost(models, comparison)
        curves = length_curves(whole, lengths or {})
        if curves:
            drawn[f"quality_by_length{suffix}.png"] = quality_by_length(curves, comparison.reference, _where(whole))
        ablations = [line for line in variants if not _AT_LENGTH.match(line["scorer"])]
        if ablations:
            drawn[f"ablations{suffix}.png"] = _forest(ablations, comparison.reference)
    if any(run.curve is not None and len(run.curve) > 1 for run in comparison.runs):
        drawn["training_loss.png"] = _losses(comparison)
    return save(folder, drawn)


def length_curves(lines: Lines, lengths: Mapping[str, int]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Metrics by model and history length, of models that have two lengths or more."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        match = _AT_LENGTH.match(line["scorer"])
        name, length = (match[1], int(match[2])) if match else (line["scorer"], lengths.get(line["scorer"]))
        if length is not None:
            found.setdefault(name, {})[length] = line["metrics"]
    return {name: dict(sorted(at.items())) for name, at in found.items() if len(at) > 1}


def quality_by_length(curves: Curves, reference: str, where: str, metric: str = METRIC) -> "Figure":
    """Metric against the number of behaviours L that the models may see, a line a model."""
    figure, axes = new_figure(7.5, 4.4)
    ax, ends = axes[0], {}
    ticks = sorted({length for at in curves.values() for length in at})
    for i, (name, at) in enumerate(curves.items()):
        value, low, high = ends_of([metrics[metric] for metrics in at.values()])
        # Models stand a little apart, so that their intervals can be told from one another.
        x = np.array(list(at)) * 1.03 ** (i - (len(curves) - 1) / 2)
        style = _line_style(name == reference, i)
        ax.errorbar(x, value, [value - low, high - value], capsize=3, elinewidth=1, **style)
        ends[name] = (float(max(at)), float(value[-1]))
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{length:,}" for length in ticks])
    ax.minorticks_off()
    ax.set_xlabel("L, newest behaviours a model may see (log scale)")
    ax.set_ylabel(metric)
    spread(ax, ends, reference)
    put_title(ax, f"{metric} by length of history", f"{where}; bars: {BARS}", legend=False)
    return figure


def _main(lines: Lines) -> "Figure":
    names, ordered = list(PANELS), _best_last(lines)
    figure, axes = new_figure(11.0, 1.2 + 0.3 * len(ordered), len(names))
    for ax, name in zip(axes, names, strict=True):
        _dots(ax, [line["metrics"][name] for line in ordered], ordered, names_too=ax is axes[0])
        ax.set_xlabel(PANELS[name])
    put_title(axes[0], "All models", f"{_where(ordered)}; bars: {BARS}, ticks: single seeds", legend=False)
    figure.subplots_adjust(wspace=0.16)
    return figure


def _by_length(lines: Lines, models: Lines) -> "Figure":
    """One panel a quarter of the users, models in the same order in all."""
    ordered = _best_last(models)
    bins = list(dict.fromkeys(line["bin"] for line in lines))
    figure, axes = new_figure(1.6 + 2.4 * len(bins), 1.3 + 0.3 * len(ordered), len(bins))
    by = {(line["scorer"], line["bin"]): line for line in lines}
    for ax, part in zip(axes, bins, strict=True):
        own = [by[line["scorer"], part] for line in ordered]
        _dots(ax, [line["metrics"][METRIC] for line in own], own, names_too=ax is axes[0])
        ax.set_title(f"{part.replace(' to ', '–')} behaviours\nn = {own[0]['users']:,}", fontsize=9, color=INK)
        ax.set_xlabel(METRIC)
    limits = [ax.get_xlim() for ax in axes]
    for ax in axes:
        ax.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    figure.subplots_adjust(wspace=0.1)
    origin = lines[0]["query_origin"]
    said = f"sampled ranking, query origin {origin}; n users a panel; bars: {BARS}"
    head: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes[0].annotate(f"{METRIC} by length of history", (0, 1), (0, 54), fontsize=12, fontweight="bold", color=INK, **head)
    axes[0].annotate(said, (0, 1), (0, 39), fontsize=9, color="#555555", **head)
    return figure


def _cost(lines: Lines, comparison: Comparison) -> "Figure":
    figure, axes = new_figure(7.5, 4.6)
    ax, points = axes[0], {}
    names = {line["scorer"] for line in lines}
    longest = max(length for run in comparison.runs if run.name in names for length in run.cost.score_us_per_target)
    for line in lines:
        costs = [run.cost.score_us_per_target for run in comparison.runs if run.name == line["scorer"]]
        known = [cost[longest] for cost in costs if longest in cost]
        if known:
            value, low, high = ends_of([line["metrics"][METRIC]])
            x = float(np.mean(known))
            ax.errorbar([x], value, [value - low, high - value], capsize=3, elinewidth=1, **_point_style(line))
            points[line["scorer"]] = (x, float(value[0]), float(low[0]), float(high[0]))
    ax.set_xscale("log")
    _plain_log_ticks(ax, [x for x, *_ in points.values()])
    ax.set_xlabel(f"µs a target on one core, history of {longest:,} behaviours (log scale; left is cheaper)")
    ax.set_ylabel(METRIC)
    put_title(ax, "Quality and serving cost", f"{_where(lines)}; bars: {BARS}", legend=False)
    place_labels(ax, points, comparison.reference)
    return figure


def _forest(lines: Lines, reference: str) -> "Figure":
    """Differences to the reference, the most harmful change on top."""
    ordered = sorted(lines, key=lambda line: -line["differences"][METRIC]["value"])
    figure, axes = new_figure(8.0, 1.2 + 0.3 * len(ordered))
    ax = axes[0]
    value, low, high = ends_of([line["differences"][METRIC] for line in ordered])
    y = np.arange(len(ordered))
    ax.errorbar(value, y, xerr=[value - low, high - value], fmt="o", color=INK, ms=5, capsize=3, elinewidth=1.2)
    ax.axvline(0, color=INK, lw=1)
    for place, line in enumerate(ordered):
        apart = line["differences"][METRIC]
        p = "" if apart["p_holm"] is None else f"   {apart['p_holm']:.4f}"
        text = f"{apart['value']:+.3f}{p}"
        ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=INK, family="monospace")
    head = f"{'diff.':>6}   Holm's p"
    ax.text(
        1.02, len(ordered) - 0.2, head, transform=ax.get_yaxis_transform(), va="bottom", fontsize=8, color=INK, family="monospace"
    )
    ax.set_yticks(y, [line["scorer"].removeprefix(f"{reference} / ") for line in ordered])
    ax.set_ylim(-0.6, len(ordered) - 0.4)
    ax.grid(axis="y", lw=0)
    ax.grid(axis="x", color="#E3E3E3", lw=0.8)
    ax.set_xlabel(f"{METRIC} minus that of {reference} (left: the change does harm)")
    put_title(ax, f"One change to {reference} at a time", f"{_where(ordered)}; bars: {BARS}", legend=True)
    return figure


def _losses(comparison: Comparison) -> "Figure":
    """Every model's own panel: is it trained to the end, do its seeds agree? Objectives differ, so levels do not compare."""
    names = [name for name, role in comparison.roles.items() if role not in (VARIANT, FLOOR)]
    columns = min(len(names), 5)
    rows = -(-len(names) // columns)
    figure, axes = new_figure(2.3 * columns, 0.5 + 1.8 * rows, columns, rows)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes, names, strict=False):
        own = [run.curve for run in comparison.runs if run.name == name and run.curve is not None and len(run.curve) > 1]
        for curve, dash in zip(own, DASHES * len(own), strict=False):
            step, value = (curve[column].to_numpy().astype(float) for column in ("step", "loss"))
            ax.plot(step, smooth(value, max(len(value) // 15, 2)), color=INK, lw=1.2, ls=dash)
        ax.set_title(name, fontsize=9, loc="left", color=INK)
        ax.tick_params(labelsize=7)
    figure.supxlabel("optimiser step", fontsize=9)
    figure.supylabel("own training loss (nats)", fontsize=9)
    figure.suptitle("Training loss, a line a seed (moving average)", x=0.01, ha="left", fontsize=11, color=INK)
    figure.tight_layout()
    return figure


def _dots(ax: "Axes", figures: Sequence[Mapping[str, Any]], lines: Lines, *, names_too: bool) -> None:
    value, low, high = ends_of(figures)
    for y, (line, figure) in enumerate(zip(lines, figures, strict=True)):
        ax.errorbar(
            value[y], y, xerr=[[value[y] - low[y]], [high[y] - value[y]]], capsize=2.5, elinewidth=1.1, **_point_style(line)
        )
        seeds = [v for v in figure["by_seed"] if v is not None]
        if len(seeds) > 1:
            ax.plot(seeds, np.full(len(seeds), y - 0.22), ls="none", marker="|", ms=5, mew=1, color=OTHERS)
        if line["role"] == REFERENCE:
            ax.axvline(value[y], color=MODELS[0], lw=0.9, ls=":", zorder=0)
    ax.set_yticks(range(len(lines)), [line["scorer"] if names_too else "" for line in lines])
    for label, line in zip(ax.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if line["role"] == REFERENCE else "normal")
    ax.set_ylim(-0.7, len(lines) - 0.4)


def _point_style(line: Mapping[str, Any]) -> dict[str, Any]:
    """Filled and blue: the reference; hollow: rivals; grey: floors."""
    if line["role"] == REFERENCE:
        return {"color": MODELS[0], "marker": "o", "ms": 7, "ls": "none"}
    colour = FLOOR_COLOUR if line["role"] == FLOOR else OTHERS
    return {"color": colour, "marker": "s" if line["role"] == FLOOR else "o", "ms": 5.5, "mfc": "white", "ls": "none"}


def _line_style(is_reference: bool, i: int) -> dict[str, Any]:
    marker = MARKERS[i % len(MARKERS)]
    if is_reference:
        return {"color": MODELS[0], "marker": marker, "ms": 7, "lw": 2.2, "ls": "-"}
    return {"color": OTHERS, "marker": marker, "ms": 5.5, "mfc": "white", "lw": 1.2, "ls": DASHES[i % len(DASHES)]}


def _best_last(lines: Lines) -> list[Mapping[str, Any]]:
    """The best model on top of an axis."""
    return sorted(lines, key=lambda line: line["metrics"][METRIC]["value"])


def _where(lines: Lines) -> str:
    return f"sampled ranking, query origin {lines[0]['query_origin']}, {lines[0]['users']:,} users"


def _plain_log_ticks(ax: "Axes", values: Sequence[float]) -> None:
    """1, 2, 5, 10 ... where the points are."""
    low, high = min(values) / 1.6, max(values) * 1.6
    ticks = [m * 10.0**e for e in range(-4, 8) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ax.set_xlim(low, high)
    ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    ax.minorticks_off()
