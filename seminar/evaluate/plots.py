"""Plots of a report: figures beside floors, by history length, training curves, recall of codes. Needs the extra `plot`.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; every bar and point carries its interval, and every
axis its unit and its number of users.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from numpy import ndarray

from seminar.errors import ConfigError, explain
from seminar.evaluate.evaluation import SAMPLED
from seminar.evaluate.protocol import FLOORS
from seminar.evaluate.summary import ALL, LENGTH
from seminar.retrieval.recall import Recall

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
METRIC = "NDCG@10"
BARS = ("HIT@1", "HIT@5", "HIT@10", "NDCG@5", "NDCG@10", "MRR", "AUC")
NOT_LOSSES = ("step", "pairs", "pairs_per_s", "gradient_norm")
MODELS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00")
FLOOR_COLOURS = ("#A9A9A9", "#5F5F5F")
INK, GRID = "#222222", "#E3E3E3"


def draw_plots(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    curves: Mapping[str, pa.Table],
    recall: Sequence[Recall] = (),
) -> list[str]:
    """Write the PNG files that the data allows; returns their names. ConfigError if matplotlib is not installed."""
    require_matplotlib()
    sampled = [line for line in lines if line["protocol"] == SAMPLED]
    main = [line for line in sampled if line["query_origin"] == sampled[0]["query_origin"]]
    by_length = [line for line in main if line["slice"] == LENGTH]
    drawn = {"model_and_floors.png": _bars([line for line in main if line["slice"] == ALL])} if main else {}
    if by_length:
        drawn["by_history_length.png"] = _by_length(by_length)
    drawn |= {f"curve_{stage}.png": _curves(stage, curve) for stage, curve in curves.items() if len(curve) > 1}
    if recall:
        drawn["recall_of_codes.png"] = _recall(recall)
    return save(folder, drawn)


def require_matplotlib() -> None:
    """ConfigError if matplotlib is not installed; else it draws without a display."""
    try:
        import matplotlib
    except ImportError as error:
        fix = "install seminar[plot]"
        raise ConfigError(explain("plots", got="no matplotlib", expected="the extra `plot`", fix=fix)) from error
    matplotlib.use("Agg")


def save(folder: Path, drawn: "Mapping[str, Figure]") -> list[str]:
    """Write figures under their file names; returns the names."""
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=DPI, bbox_inches="tight", facecolor="white")
    return list(drawn)


def smooth(value_N: Float[ndarray, " N"], span: int) -> Float[ndarray, " N"]:
    """Centred moving average over about `span` points, fewer but symmetric at the ends: a falling curve keeps its place."""
    total = np.concatenate([[0.0], np.cumsum(value_N)])
    place = np.arange(len(value_N))
    half = np.minimum(np.minimum(place, place[::-1]), span // 2)
    return (total[place + half + 1] - total[place - half]) / (2 * half + 1)


def _bars(lines: Sequence[Mapping[str, Any]]) -> "Figure":
    figure, axes = new_figure(10.5, 4.2)
    ax = axes[0]
    styles = _styles(lines)
    width = 0.8 / len(styles)
    for i, (scorer, (colour, _)) in enumerate(styles.items()):
        line = next(line for line in lines if line["scorer"] == scorer)
        value, low, high = ends_of([line["metrics"][name] for name in BARS])
        x = np.arange(len(BARS)) + (i - (len(styles) - 1) / 2) * width
        ax.bar(x, value, width * 0.92, color=colour, label=scorer)
        ax.errorbar(x, value, [value - low, high - value], fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        for place, v, top in zip(x, value, high, strict=True):
            ax.text(place, top + 0.012, f"{v:.2f}", ha="center", va="bottom", fontsize=7, color=INK)
    ax.set_xticks(np.arange(len(BARS)), BARS)
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(0, 1.08)
    ax.set_ylabel("value (higher is better)")
    _legend(ax)
    put_title(
        ax, "Model beside floors", f"query origin {lines[0]['query_origin']}, {lines[0]['users']:,} users, bars: 95 % interval"
    )
    return figure


def _by_length(lines: Sequence[Mapping[str, Any]]) -> "Figure":
    figure, axes = new_figure(7.5, 4.2)
    ax = axes[0]
    bins = list(dict.fromkeys(line["bin"] for line in lines))
    styles = _styles(lines)
    for i, (scorer, (colour, marker)) in enumerate(styles.items()):
        own = [line for line in lines if line["scorer"] == scorer]
        value, low, high = ends_of([line["metrics"][METRIC] for line in own])
        x = np.array([bins.index(line["bin"]) for line in own]) + (i - (len(styles) - 1) / 2) * 0.09
        ax.errorbar(x, value, [value - low, high - value], color=colour, marker=marker, ms=6, lw=1.8, capsize=3, label=scorer)
    users = {line["bin"]: line["users"] for line in lines}
    ax.set_xticks(range(len(bins)), [f"{name.replace(' to ', '–')}\nn = {users[name]:,}" for name in bins])
    ax.set_xlim(-0.5, len(bins) - 0.5)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("behaviours before the request (quarters of the users, n users each)")
    ax.set_ylabel(METRIC)
    _legend(ax)
    put_title(ax, f"{METRIC} by history length", f"query origin {lines[0]['query_origin']}, bars: 95 % interval over users")
    return figure


def _curves(stage: str, curve: pa.Table) -> "Figure":
    names = [name for name in curve.column_names if name not in NOT_LOSSES]
    figure, axes = new_figure(3.2 * len(names), 3.0, len(names))
    step = curve["step"].to_numpy().astype(float)
    for ax, name in zip(axes, names, strict=True):
        value = curve[name].to_numpy().astype(float)
        ax.plot(step, value, color=MODELS[0], alpha=0.25, lw=0.8)
        ax.plot(step, smooth(value, max(len(value) // 15, 2)), color=MODELS[0], lw=2)
        ax.set_title(name, fontsize=10, loc="left", color=INK)
        ax.set_xlabel("optimiser step")
        ax.set_ylim(*_room(value))
    axes[0].set_ylabel("loss (nats)")
    figure.suptitle(
        f"Training curve: {stage} ({len(step):,} steps; thin: each step, thick: moving average)", x=0.01, ha="left", fontsize=11
    )
    figure.tight_layout()
    return figure


def _recall(recall: Sequence[Recall]) -> "Figure":
    figure, axes = new_figure(6.0, 4.0)
    ax = axes[0]
    k, raw, rescored = (np.array([getattr(r, name) for r in recall]) for name in ("k", "raw", "rescored"))
    ways = ((rescored, MODELS[0], "o", "re-scored exactly", 7), (raw, MODELS[3], "s", "codes alone", -15))
    for value, colour, marker, label, shift in ways:
        ax.plot(k, value, color=colour, marker=marker, lw=2, label=label)
        for x, y in zip(k, value, strict=True):
            ax.annotate(f"{y:.3f}", (x, y), (0, shift), textcoords="offset points", ha="center", fontsize=8, color=colour)
    ax.set_xscale("log")
    ax.set_xticks(k, [f"{x:,}" for x in k], minor=False)
    ax.minorticks_off()
    ax.set_ylim(0, 1.08)
    ax.set_xlabel("K, behaviours kept")
    ax.set_ylabel("share of the exact top-K found")
    _legend(ax)
    put_title(ax, "Recall of codes", "against exact retrieval, mean over held-out targets")
    return figure


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#999999")
        ax.grid(axis="y", color=GRID, lw=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _styles(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Scorer to colour and marker: models in colour and first, floors in greys."""
    scorers = list(dict.fromkeys(line["scorer"] for line in lines))
    models = [name for name in scorers if name not in FLOORS]
    styles = {name: (MODELS[i % len(MODELS)], "o") for i, name in enumerate(models)}
    return styles | {
        name: (FLOOR_COLOURS[FLOORS.index(name)], "s^"[FLOORS.index(name)]) for name in FLOORS[::-1] if name in scorers
    }


def ends_of(figures: Sequence[Mapping[str, Any]]) -> tuple[ndarray, ndarray, ndarray]:
    value, low, high = (np.array([np.nan if f[part] is None else f[part] for f in figures]) for part in ("value", "low", "high"))
    return value, np.minimum(low, value), np.maximum(high, value)


def _room(value: ndarray) -> tuple[float, float]:
    """Limits that show the course of a loss: its first steps may be far above the rest and are cut."""
    low, high = float(np.min(value)), float(np.quantile(value, 0.99))
    pad = 0.06 * max(high - low, 1e-6)
    return low - pad, high + pad


def _legend(ax: "Axes") -> None:
    ax.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4)


def put_title(ax: "Axes", title: str, subtitle: str, *, legend: bool = True) -> None:
    """Title and subtitle at the left edge, above the legend if there is one."""
    room = 18 if legend else 0
    ax.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold", color=INK, pad=6 + room)
    ax.annotate(
        subtitle, (0, 1), (0, 10 + room), xycoords="axes fraction", textcoords="offset points", fontsize=9, color="#555555"
    )
