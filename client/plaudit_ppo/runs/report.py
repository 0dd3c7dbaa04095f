"""The report of a run: one HTML page made of what the run has left, also while it still goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

from plaudit_ppo.config import PPOConfig, load_config, shown
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.runs.charts import GOLD, KL, SCORE, TIME, series_figure
from plaudit_ppo.runs.log import read_log
from plaudit_ppo.runs.page import make_card, make_document, make_figure, make_rows
from plaudit_ppo.runs.summary import TrainSummary, summarize

_FIGURES = (
    ("Score", "scoring/score_mean", SCORE, "What PPO maximizes, as the scorer answered it; mean over rollouts."),
    ("Evaluation score", "eval/scores", GOLD, "Of the scorer that is never trained on."),
    ("KL", "objective/kl", KL, "From the reference, sum over the tokens of a completion; nats."),
    ("Length", "tokens/completion_mean", TIME, "Tokens of a completion, with EOS."),
    ("Entropy", "policy/entropy_avg", TIME, "Of the policy's distribution, mean over tokens; nats."),
    ("Value error", "loss/value_avg", KL, "Clipped value loss, mean over tokens."),
    ("Explained variance", "val/explained_variance", KL, "How much of the returns' variance the critic knows."),
    (
        "Exposed wait",
        "scoring/exposed_wait_s",
        SCORE,
        "Seconds per iteration in which training stood still for scores.",
    ),
    ("Masked share", "scoring/masked_share", GOLD, "Rollouts without a score."),
)
_LEAST_TOP = {"scoring/exposed_wait_s": 0.1, "scoring/masked_share": 0.1}


def write_report(directory: Path) -> Path:
    """Writes `report.html` into a run's directory and returns its path.

    Raises:
        ConfigError: the directory holds no run, or no iteration of it has ended.
    """
    log = read_log(directory / "log.jsonl")
    if not log:
        raise ConfigError(f"{directory}: holds no iteration of a run (log.jsonl); give the output directory of one")
    settings = load_config(directory / "config.toml")
    page = make_report(directory.resolve().name, log, read_log(directory / "samples.jsonl"), settings)
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def make_report(
    name: str,
    log: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    settings: PPOConfig,
) -> str:
    """The page, with inline style and charts and without any reference to another resource.

    Args:
        name: of the run.
        log: lines of log.jsonl, at least one.
        samples: lines of samples.jsonl; those of the first and of the last iteration in it are shown.
        settings: of the run.
    """
    summary = summarize(log)
    figures = [
        make_figure(title, _chart(log, metric, color), caption)
        for title, metric, color, caption in _FIGURES
        if any(line.get(metric) is not None for line in log)
    ]
    rows = [(spec.name, shown(getattr(settings, spec.name))) for spec in fields(settings)]
    body = (
        f'<div class="cards">{"".join(make_card(*card) for card in _cards(summary))}</div>\n'
        f'<h2>Training</h2>\n<div class="figures">{"".join(figures)}</div>\n'
        f"<h2>Samples</h2>\n{_samples(samples)}"
        f'<h2>Settings</h2>\n<div class="scroll"><table class="narrow">{make_rows(rows)}</table></div>\n'
    )
    missing = settings.iterations - summary.iterations
    subtitle = f"{summary.extent}; {f'{missing} to go; ' if missing > 0 else ''}{summary.scoring}"
    return make_document(title=f"{name}: PPO", heading=name, subtitle=subtitle, body=body)


def _chart(log: Sequence[Mapping[str, Any]], metric: str, color: str) -> str:
    values = [line.get(metric) for line in log]
    return series_figure(values, label=metric, color=color, least_top=_LEAST_TOP.get(metric))


def _cards(summary: TrainSummary) -> list[tuple[str, str]]:
    cards = [(_change(summary, "scoring/score_mean"), "score, first and last iteration")]
    if "eval/scores" in summary.final:
        cards.append((_change(summary, "eval/scores"), "evaluation score, first and last iteration"))
    return [
        *cards,
        (f"{_number(summary.final['objective/kl'])} nats", "KL per completion at the end"),
        (f"{100 * summary.exposed_wait_share:.2g}%", "of the time spent waiting for scores"),
    ]


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return "<p>None were kept (sample_every).</p>\n"
    iterations = dict.fromkeys((samples[0]["iteration"], samples[-1]["iteration"]))
    return "".join(_sample_table(samples, iteration) for iteration in iterations)


def _sample_table(samples: Sequence[Mapping[str, Any]], iteration: int) -> str:
    numbers = "".join(f'<th class="number">{name}</th>' for name in ("tokens", "score", "KL, nats"))
    rows = [
        f'<tr><td class="text soft"><bdi>{escape(str(row.get("prompt_text", row["prompt"])))}</bdi></td>'
        f'<td class="text"><bdi>{escape(row["completion"]) or "(empty)"}</bdi></td>'
        f'<td class="number">{row["num_tokens"]}{"" if row["finished"] else ", cut"}</td>'
        f'<td class="number">{_number(row["score"])}</td><td class="number">{_number(row["kl"])}</td></tr>'
        for row in samples
        if row["iteration"] == iteration
    ]
    return (
        f"<h3>Iteration {iteration}</h3>\n"
        f'<div class="scroll"><table><thead><tr><th>prompt</th><th>completion</th>{numbers}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _change(summary: TrainSummary, metric: str) -> str:
    return f"{_number(summary.first.get(metric))} → {_number(summary.final.get(metric))}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
