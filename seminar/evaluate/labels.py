"""Names beside points and line ends that do not cover one another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seminar.evaluate.plots import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 8.5
_APART = 13.0
"""Points between the middles of two names."""
_OFFSETS = [(side * x, y) for x, y in ((8, 0), (8, 9), (8, -9), (14, 22), (14, -22), (26, 34), (26, -34)) for side in (1, -1)]
_OFFSETS += [(0, y) for y in (9, 24, 39, 54)]


def place_labels(ax: "Axes", points: Mapping[str, tuple[float, float, float, float]], strong: str) -> None:
    """Name each point (x, y, low, high in data coordinates) at the nearest place that no bar and no other name occupies."""
    from matplotlib.transforms import Bbox

    renderer = _drawn(ax)
    # A bar has no width, and what has none overlaps nothing.
    bars = [ax.transData.transform([(x, low), (x, high)]) for x, _, low, high in points.values()]
    taken = [Bbox(ends).padded(renderer.points_to_pixels(4.0)) for ends in bars]
    frame = ax.get_window_extent(renderer)
    for name, (at, value, _, high) in sorted(points.items(), key=lambda item: (item[0] != strong, -item[1][1])):
        best, fewest = None, 1 << 30
        for x, y in _OFFSETS:
            label = ax.annotate(
                name,
                (at, value if x else high),
                (x, y),
                textcoords="offset points",
                ha="left" if x > 0 else "right" if x < 0 else "center",
                va="center",
                fontsize=_SIZE,
                color=INK,
                fontweight="bold" if name == strong else "normal",
                arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "lw": 0.6} if abs(y) > 20 else None,
            )
            box = label.get_window_extent(renderer)
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
            hits = box.count_overlaps(taken) + 3 * outside
            if hits < fewest:
                if best is not None:
                    best.remove()
                best, fewest = label, hits
            else:
                label.remove()
            if not fewest:
                break
        if best is not None:
            taken.append(best.get_window_extent(renderer))


def spread(ax: "Axes", ends: Mapping[str, tuple[float, float]], strong: str) -> None:
    """Name each line at its right end (data coordinates), names pushed apart where they would touch."""
    pixels_a_point = _drawn(ax).points_to_pixels(1.0)
    last = -1e9
    right = max(x for x, _ in ends.values())
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        own = ax.transData.transform((x, y))[1] / pixels_a_point
        at = max(own, last + _APART)
        last = at
        ax.annotate(
            name,
            (x, y),
            (14 if x == right else 8, at - own),
            textcoords="offset points",
            va="center",
            fontsize=_SIZE,
            color=INK,
            fontweight="bold" if name == strong else "normal",
            annotation_clip=False,
        )


def _drawn(ax: "Axes") -> Any:
    """Lay the figure out, so that places in pixels are known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure: Any = ax.get_figure()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()
