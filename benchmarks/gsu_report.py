"""Table and plots of `benchmarks/gsu.py`."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.gsu_methods import INT8, MERGED, METHODS, PAPER

DOCS = RESULTS.parent.parent / "docs"
"""Figures stand beside the page that shows them."""

COLUMNS = {
    "method": "method",
    "bytes_per_behaviour": "B",
    "recall": "recall@100",
    "recall_rescored": "re-scored",
    "us_1": "1 target, us",
    "us_1_cold": "cold",
    "us_100": "100 targets, us each",
    "us_100_rescored": "re-scored",
}


def write_report(rows: Sequence[dict[str, Any]], growth: Sequence[dict[str, Any]]) -> None:
    """gsu_table.md and three figures: recall against time, recall against bytes, time against length."""
    RESULTS.mkdir(exist_ok=True)
    lines: list[str] = []
    for world in dict.fromkeys(row["world"] for row in rows):
        lines += ["", f"### {world}", "", "| " + " | ".join(COLUMNS.values()) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
        lines += ["| " + " | ".join(_cell(row[column]) for column in COLUMNS) + " |" for row in rows if row["world"] == world]
    (RESULTS / "gsu_table.md").write_text("\n".join(lines).strip() + "\n")
    print(*lines, sep="\n")
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        print("no plots: install the extra `plot`")
        return
    mpl.use("Agg")
    (RESULTS / "gsu_rows.json").write_text(json.dumps({"rows": list(rows), "growth": list(growth)}, indent=1) + "\n")
    plot(rows, growth)


def plot(rows: Sequence[dict[str, Any]], growth: Sequence[dict[str, Any]]) -> None:
    """The three figures, from rows as they are kept in gsu_rows.json."""
    time_axis = "us a target, of 100 (log); arrow: re-scored"
    recall_plot(rows, ("us_100", "us_100_rescored"), time_axis, "gsu_recall_time")
    recall_plot(rows, ("bytes_per_behaviour", "bytes_per_behaviour"), "bytes a behaviour (log)", "gsu_recall_bytes")
    if growth:
        length_plot(growth)


def recall_plot(rows: Sequence[dict[str, Any]], columns: tuple[str, str], label: str, name: str) -> None:
    """One panel a world: recall@100 of each method alone, and re-scored, against what it costs. Rivals are triangles."""
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["world"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names) + 2.6, 4.8), sharey=True, squeeze=False)
    for axis, world in zip(axes[0], names, strict=True):
        for row in (row for row in rows if row["world"] == world):
            colour, marker = style(row["method"])
            start, end = (row[columns[0]], row["recall"]), (row[columns[1]], row["recall_rescored"])
            if end[0] == end[0] and end != start:
                axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "alpha": 0.45, "linewidth": 0.9})
            axis.scatter(*start, color=colour, marker=marker, s=46, zorder=3, label=row["method"])
        axis.set(xscale="log", xlabel=label, title=world, ylim=(0.15, 1.04))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("recall@100 against exact")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 2.5 / (4.6 * len(names) + 2.6), 1))
    figure.savefig(DOCS / f"{name}.png", dpi=130)
    plt.close(figure)


def length_plot(growth: Sequence[dict[str, Any]]) -> None:
    """Microseconds of one target against the length of the history; dashed: the first call, after others used the caches."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 5))
    for name in dict.fromkeys(row["method"] for row in growth):
        points = [row for row in growth if row["method"] == name]
        colour, marker = style(name)
        lengths = [row["length"] for row in points]
        axis.plot(lengths, [row["us"] for row in points], color=colour, marker=marker, label=name, linewidth=1.3)
        axis.plot(lengths, [row["us_cold"] for row in points], color=colour, linestyle="--", linewidth=0.8, alpha=0.6)
    axis.set(xscale="log", yscale="log", xlabel="behaviours", ylabel="top-100 of one target, us (dashed: cold caches)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "gsu_length.png", dpi=130)
    plt.close(figure)


def style(method: str) -> tuple[Any, str]:
    """A colour of its own, and a marker by who made it."""
    from matplotlib import colormaps

    fixed = {PAPER: "black", MERGED: "grey", INT8: "red"}
    names = [m.name for m in METHODS if m.name not in fixed]
    colour = fixed[method] if method in fixed else colormaps["tab20"](names.index(method) / 20)
    return colour, "^" if method.startswith(("faiss", "SimHash", "HNSW")) else "o"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value != value:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}" if value <= 1 else f"{value:.1f}"
