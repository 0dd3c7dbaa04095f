"""The figures of the studies. Knows nothing of the page."""

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from plaudit_demo.studies.curves import Evaluation
from plaudit_ppo.runs.charts import GOLD, KL, SCORE, TIME, add_legend, new_axes, to_svg

Curves = Mapping[str, Sequence[Sequence[Evaluation]]]
_COLORS = (GOLD, SCORE, KL, TIME)


def against_distance(curves: Curves, name: str, label: str) -> Markup:
    """A figure of each way over √KL, one line per seed."""
    return _lines(
        curves, "distance from the SFT policy, √KL (√nat)", label, lambda point: math.sqrt(max(0.0, point["kl"])), name
    )


def against_iterations(curves: Curves, name: str, label: str) -> Markup:
    """A figure of each way over the iterations, one line per seed."""
    return _lines(curves, "iteration", label, lambda point: point["iteration"], name)


def _lines(curves: Curves, x_label: str, y_label: str, x: Callable[[Evaluation], float], name: str) -> Markup:
    figure, axes = new_axes(x_label, y_label)
    for (way, seeds), color in zip(curves.items(), _COLORS, strict=False):
        for number, curve in enumerate(seeds):
            axes.plot(
                [x(point) for point in curve],
                [point[name] for point in curve],
                color=color,
                lw=1.5,
                marker="o",
                ms=3,
                label=None if number else way,
            )
    add_legend(axes)
    return to_svg(figure)
