"""The figures of the demo's page.

Knows nothing of the page.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

from plaudit_demo.report.results import Results
from plaudit_demo.service import Latency
from plaudit_ppo.runs.charts import GOLD, INK, KL, MEAN_OF, SCORE, TIME, add_legend, new_axes, running_mean, to_svg


def reward_figure(values: Sequence[float], *, label: str, color: str, start: float, start_std: float) -> Markup:
    """One reward per iteration, its running mean, and what the warmed-up policy had."""
    figure, axes = new_axes("iteration", label)
    iterations = range(1, len(values) + 1)
    axes.axhspan(start - start_std, start + start_std, color=color, alpha=0.12, lw=0, label="warmed-up policy, ± 1 std")
    axes.axhline(start, color=color, lw=1, ls=(0, (4, 3)), label="warmed-up policy, mean")
    axes.plot(iterations, values, color=color, lw=1, alpha=0.45, label="rollouts of the iteration, mean")
    axes.plot(iterations, running_mean(values), color=color, lw=2.2, label=f"mean of the last {MEAN_OF}")
    add_legend(axes)
    return to_svg(figure)


def kl_figure(values: Sequence[float]) -> Markup:
    """KL from the warmed-up policy per iteration."""
    figure, axes = new_axes("iteration", "KL, nats per completion")
    iterations = range(1, len(values) + 1)
    axes.plot(iterations, values, color=KL, lw=1, alpha=0.45, label="rollouts of the iteration, mean")
    axes.plot(iterations, running_mean(values), color=KL, lw=2.2, label=f"mean of the last {MEAN_OF}")
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return to_svg(figure)


def over_optimization_figure(results: Results) -> Markup:
    """Proxy and gold, both in standard deviations of the warmed-up policy, over the distance from it."""
    figure, axes = new_axes("distance from the warmed-up policy, √KL (√nat)", "improvement, in std of the start")
    before = results.before
    distance = [math.sqrt(max(0.0, kl)) for kl in running_mean([row["objective/kl"] for row in results.log])]
    for name, label, color, mean, std in (
        ("scoring/score_mean", "reward model's score (proxy)", SCORE, before.score_mean, before.score_std),
        ("eval/scores", "gold reward", GOLD, before.gold_mean, before.gold_std),
    ):
        improvement = [(value - mean) / std for value in running_mean([row[name] for row in results.log])]
        axes.plot(distance, improvement, color=color, lw=1, alpha=0.5)
        axes.scatter(distance, improvement, color=color, s=14, label=label, lw=0)
    axes.set_xlim(left=0)
    add_legend(axes)
    return to_svg(figure)


def wait_figure(results: Results) -> Markup:
    """Per iteration, how long the calls took and how much of that training stood still."""
    figure, axes = new_axes("iteration", "milliseconds per iteration")
    iterations = range(1, len(results.log) + 1)
    for name, label, color in (
        ("scoring/call_s", "calls to the service, added up", TIME),
        ("scoring/exposed_wait_s", "of that, training stood still", SCORE),
    ):
        axes.plot(iterations, [1e3 * row[name] for row in results.log], color=color, lw=1.6, label=label)
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return to_svg(figure)


def latency_figure(latency: Latency) -> Markup:
    """The service's own histogram of request times."""
    figure, axes = new_axes("time of a request, milliseconds", "requests")
    used = [index for index, requests in enumerate(latency.counts) if requests]
    shown = range(max(0, used[0] - 1), min(len(latency.counts), used[-1] + 2))
    heights = [latency.counts[index] for index in shown]
    bars = axes.bar(range(len(heights)), heights, color=TIME, width=0.92)
    axes.bar_label(bars, [str(height) if height else "" for height in heights], color=INK, fontsize=9, padding=2)
    bounds = [latency.bounds_s[index] for index in shown]
    axes.set_xticks(range(len(heights)), [f"≤ {1e3 * bound:g}" if math.isfinite(bound) else "more" for bound in bounds])
    axes.margins(y=0.15)
    return to_svg(figure)
