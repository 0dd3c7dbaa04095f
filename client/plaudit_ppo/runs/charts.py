"""Charts as inline SVG, readable on light and on dark ground.

Knows nothing of the pages that show them.
"""

import io
import math
import re
from collections.abc import Sequence
from itertools import accumulate

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

GOLD, SCORE, KL, TIME = "#c98a00", "#3d85c6", "#3a9d6a", "#9a6fb0"
INK = "#010203"  # stands for the page's own text colour
MEAN_OF = 5


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and the up to four before it."""
    sums = [0.0, *accumulate(values)]
    starts = [max(0, end - MEAN_OF) for end in range(1, len(sums))]
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, start=1)]


def series_figure(
    values: Sequence[float | None],
    *,
    label: str,
    color: str,
    least_top: float | None = None,
    at: Sequence[int] | None = None,
) -> Markup:
    """One value per iteration; where it is undefined there is a gap.

    Args:
        values: from the first iteration on.
        label: of the vertical axis.
        color: of the line.
        least_top: the vertical axis begins at 0 and goes at least this far, so that next to nothing looks like it.
        at: the iteration of each value; None: 1, 2, 3 and so on.
    """
    figure, axes = new_axes("iteration", label)
    numbers = [math.nan if value is None else value for value in values]
    places = at or range(1, len(numbers) + 1)
    size = 2.5 if len(numbers) > 1 else 6
    axes.plot(places, numbers, color=color, lw=1.8, marker="o", ms=size)  # also where it is alone
    axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if least_top is not None:
        known = [value for value in values if value is not None]
        axes.set_ylim(0, max([least_top, *(1.05 * value for value in known)]))
    elif not any(values):
        axes.set_ylim(0, 1)  # else a constant 0 would be drawn in the middle
    return to_svg(figure)


def new_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one empty coordinate system."""
    figure = Figure(figsize=(6.4, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    draw_in_ink(axes)
    return figure, axes


def draw_in_ink(axes: Axes) -> None:
    """Give everything but the data the page's own text colour."""
    axes.grid(color=INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
    axes.tick_params(colors=INK, which="both")


def add_legend(axes: Axes) -> None:
    """What the labelled lines are, where there is most room."""
    axes.legend(loc="best", fontsize=9, frameon=False, labelcolor=INK)


def to_svg(figure: Figure) -> Markup:
    """The figure as one <svg> element, safe in a page; the same bytes for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "plaudit", "font.size": 10.5}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return Markup(svg.replace(INK, "currentColor"))  # noqa: S704  matplotlib escapes every text in it
