"""Table and plots of `benchmarks/gsu.py`, beside its JSON rows."""

from collections.abc import Sequence
from typing import Any

from benchmarks.common import RESULTS

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
    recall_plot(rows, "us_100_rescored", "recall", "time of a target, us (100 targets, re-scored; log)", "gsu_recall_time")
    recall_plot(rows, "bytes_per_behaviour", "recall", "bytes a behaviour (log)", "gsu_recall_bytes")
    if growth:
        length_plot(growth)


def recall_plot(rows: Sequence[dict[str, Any]], x: str, y: str, label: str, name: str) -> None:
    """One panel a world: what each method recalls on its own against what it costs."""
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["world"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(5.2 * len(names), 4.6), sharey=True, squeeze=False)
    for axis, world in zip(axes[0], names, strict=True):
        for row in (row for row in rows if row["world"] == world and row[x] == row[x]):
            colour, marker = style(row["method"])
            axis.scatter(row[x], row[y], color=colour, marker=marker, s=42, zorder=3)
            axis.annotate(row["method"], (row[x], row[y]), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set(xscale="log", xlabel=label, title=world)
        axis.margins(x=0.25)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("recall@100 before re-scoring")
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=130)
    plt.close(figure)


def length_plot(growth: Sequence[dict[str, Any]]) -> None:
    """Microseconds of one target against the length of the history."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5))
    for name in dict.fromkeys(row["method"] for row in growth):
        points = [row for row in growth if row["method"] == name]
        colour, marker = style(name)
        lengths, times = [row["length"] for row in points], [row["us"] for row in points]
        axis.plot(lengths, times, color=colour, marker=marker, label=name, linewidth=1.2)
    axis.set(xscale="log", yscale="log", xlabel="behaviours", ylabel="top-100 of one target, us")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "gsu_length.png", dpi=130)
    plt.close(figure)


def style(method: str) -> tuple[str, str]:
    """Colour by family, marker by who made it."""
    families = {"int8": "C3", "multi-modal": "C0", "decode": "C9", "merged PQ": "C2", "merged RQ": "C2", "merged float": "C7"}
    colour = next((c for start, c in families.items() if method.startswith(start)), "black")
    rivals = {"faiss": "C1", "SimHash": "C4", "HNSW": "C5"}
    rival = next((c for start, c in rivals.items() if method.startswith(start)), None)
    return (rival, "^") if rival else (colour, "o")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value != value:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}" if value <= 1 else f"{value:.1f}"
