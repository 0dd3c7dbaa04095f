"""The page that shows a run of the demo."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plaudit_demo.report.evaluation import sample_rows
from plaudit_demo.report.figures import kl_figure, latency_figure, over_optimization_figure, reward_figure, wait_figure
from plaudit_demo.report.results import Results
from plaudit_ppo.runs.charts import GOLD, SCORE
from plaudit_ppo.runs.page import render_page

_PAGE = Path(__file__).with_suffix(".html")
_NUM_SAMPLES = 8
_LATENCY_BOUND_S = 0.1


def make_page(results: Results) -> str:
    """The page of a run.

    Args:
        results: what the run measured.

    Returns:
        HTML with inline style and inline SVG, without any reference to another resource.
    """
    before, after, log, latency = results.before, results.after, results.log, results.latency
    settings = asdict(results.settings)
    gold_chart = reward_figure(
        [row["eval/scores"] for row in log],
        label="gold reward",
        color=GOLD,
        start=before.gold_mean,
        start_std=before.gold_std,
    )
    score_chart = reward_figure(
        [row["scoring/score_mean"] for row in log],
        label="score",
        color=SCORE,
        start=before.score_mean,
        start_std=before.score_std,
    )
    return render_page(
        _PAGE,
        iterations=len(log),
        seconds=f"{results.seconds:.0f}",
        cards=_cards(results),
        num_prompts=len(results.prompts),
        score_gain=f"{(after.score_mean - before.score_mean) / before.score_std:+.2f}",
        gold_gain=f"{_gold_gain(results):+.2f}",
        masked_share=f"{results.masked_share:.1%}",
        gold_chart=gold_chart,
        score_chart=score_chart,
        kl_chart=kl_figure([row["objective/kl"] for row in log]),
        over_optimization_chart=over_optimization_figure(results),
        wait_chart=wait_figure(results),
        latency_chart=latency_figure(latency),
        exposed_wait=results.exposed_wait,
        num_requests=sum(latency.counts),
        latency_mean_ms=f"{1e3 * latency.mean_s:.1f}",
        latency_bound_ms=f"{1e3 * _LATENCY_BOUND_S:.0f}",
        share_within=f"{latency.share_within(_LATENCY_BOUND_S):.1%}",
        samples=list(_samples(results)),
        fingerprint=after.fingerprint,
        times=[(title, f"{seconds:.1f} s") for title, seconds in results.stage_seconds.items()],
        settings=settings,
        setting_rows=[(name.replace("_", " "), f"{value:g}") for name, value in settings.items()],
    )


def _cards(results: Results) -> list[tuple[str, str]]:
    before, after = results.before, results.after
    return [
        (
            f"{before.gold_mean:.2f} → {after.gold_mean:.2f}",
            f"gold reward, held-out prompts ({_gold_gain(results):+.1f} std)",
        ),
        (f"{before.score_mean:.2f} → {after.score_mean:.2f}", "reward model's score, held-out prompts"),
        (f"{after.kl_mean:.1f} nats", "KL per completion at the end"),
        (
            f"{results.pair_accuracy:.1%}",
            f"pair accuracy of the reward model (gold itself: {results.best_pair_accuracy:.1%})",
        ),
        (results.exposed_wait, "of the PPO time spent waiting for scores"),
    ]


def _gold_gain(results: Results) -> float:
    """In standard deviations of the warmed-up policy."""
    return (results.after.gold_mean - results.before.gold_mean) / results.before.gold_std


def _samples(results: Results) -> Iterator[dict[str, Any]]:
    """Of each prompt both completions with their figures as text."""
    for sample in sample_rows(results.prompts, results.before, results.after)[:_NUM_SAMPLES]:
        completions = (("first", "warmed up", sample["before"]), ("second", "after PPO", sample["after"]))
        yield {
            "prompt": sample["prompt"],
            "rows": [
                {
                    "place": place,
                    "label": label,
                    "completion": row["completion"].strip(),
                    "figures": [f"{row[name]:.2f}" for name in ("gold", "score", "kl")],
                }
                for place, label, row in completions
            ],
        }
