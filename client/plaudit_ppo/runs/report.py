"""The report of a run: one HTML page made of what the run has left, also while it still goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plaudit_client.whole_files import write_file
from plaudit_ppo.config import PPOConfig, shown
from plaudit_ppo.errors import CheckpointError, ConfigError, one_line
from plaudit_ppo.runs.charts import GOLD, KL, SCORE, TIME, series_figure
from plaudit_ppo.runs.findings import find
from plaudit_ppo.runs.log import read_log
from plaudit_ppo.runs.page import render_page
from plaudit_ppo.runs.summary import TrainSummary, summarize
from plaudit_ppo.settings_text import load_config
from plaudit_ppo.training.held_out import Evaluation, best_evaluation

_PAGE = Path(__file__).with_suffix(".html")
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
_OF_CORRECTION = (
    ("Sampler's KL", "val/sampling_kl", KL, "From the sampler to the training forward, mean over tokens; nats."),
    ("Sampler's largest difference", "val/sampling_log_ratio_max", KL, "Of the two logprobs of one token; nats."),
    ("Importance weights cut", "val/sampling_clipped_share", GOLD, "Share of tokens whose weight was cut or masked."),
)
_OF_ENGINES = (
    ("Sampling rate", "time/tokens_per_second", TIME, "Completion tokens per second of generation."),
    ("Wait for completions", "time/generate_wait_s", SCORE, "Seconds in which training stood still for them."),
    ("Canary error", "sampler/canary_error", KL, "Of an engine that was just given the weights, largest |ratio - 1|."),
)
_OF_HELD_OUT = (
    ("Held-out score", "heldout/scores", SCORE, "Of completions of prompts that are never trained on; mean."),
    ("Held-out evaluation score", "heldout/eval_scores", GOLD, "The same completions by the evaluation scorer; mean."),
    ("Win rate", "heldout/win_rate", SCORE, "Against the start policy on the held-out prompts; a tie is half."),
    ("Held-out KL", "heldout/kl", KL, "Of these completions, from the reference; nats."),
    ("Held-out length", "heldout/tokens_mean", TIME, "Of these completions; tokens with EOS."),
)
_LEAST_TOP = {"scoring/exposed_wait_s": 0.1, "scoring/masked_share": 0.1}


def write_report(directory: Path) -> Path:
    """Writes `report.html` into a run's directory and returns its path.

    Raises:
        ConfigError: the directory holds no run, or no iteration of it has ended.
        CheckpointError: what it holds was not written by a run.
    """
    log = read_log(directory / "log.jsonl")
    if not log:
        raise ConfigError(f"{directory}: holds no iteration of a run (log.jsonl); give the output directory of one")
    settings = load_config(directory / "config.toml")
    samples = read_log(directory / "samples.jsonl")
    evaluations = read_log(directory / "evaluations.jsonl")
    try:
        page = make_report(directory.resolve().name, log, samples, settings, evaluations)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{directory}: log.jsonl, samples.jsonl or evaluations.jsonl was not written by this version's run "
            f"({one_line(error)}); give the output directory of one"
        ) from error
    path = directory / "report.html"
    write_file(path, page)
    return path


def make_report(
    name: str,
    log: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    settings: PPOConfig,
    evaluations: Sequence[Evaluation] = (),
) -> str:
    """The page, with inline style and charts and without any reference to another resource.

    Args:
        name: of the run.
        log: lines of log.jsonl, at least one.
        samples: lines of samples.jsonl; those of the first and of the last iteration in it are shown.
        settings: of the run.
        evaluations: lines of evaluations.jsonl.
    """
    summary = summarize(log, evaluations)
    missing = settings.iterations - summary.iterations
    return render_page(
        _PAGE,
        name=name,
        subtitle=f"{summary.extent}; {f'{missing} to go; ' if missing > 0 else ''}{summary.scoring}",
        cards=[*_cards(summary), *_held_out_cards(evaluations)],
        findings=find(log),
        figures=[
            (title, _chart(log, metric, color), caption)
            for title, metric, color, caption in _FIGURES
            + (_OF_CORRECTION if settings.sampling_correction != "none" else ())
            + (_OF_ENGINES if settings.sampler == "vllm" else ())
            if any(line.get(metric) is not None for line in log)
        ]
        + [
            (title, _held_out_chart(evaluations, metric, color), caption)
            for title, metric, color, caption in _OF_HELD_OUT
            if any(line[metric] is not None for line in evaluations)
        ],
        samples=_samples(samples),
        settings=[(spec.name, shown(getattr(settings, spec.name))) for spec in fields(settings)],
    )


def _chart(log: Sequence[Mapping[str, Any]], metric: str, color: str) -> Markup:
    values = [line.get(metric) for line in log]
    return series_figure(values, label=metric, color=color, least_top=_LEAST_TOP.get(metric))


def _held_out_chart(evaluations: Sequence[Evaluation], metric: str, color: str) -> Markup:
    values, at = [line[metric] for line in evaluations], [line["iteration"] for line in evaluations]
    return series_figure(values, label=metric, color=color, at=at)


def _held_out_cards(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    if not evaluations:
        return []
    first, final, best = evaluations[0], evaluations[-1], best_evaluation(evaluations)
    change = f"{_number(first['heldout/scores'])} → {_number(final['heldout/scores'])}"
    cards = [(change, "score on held-out prompts, first and latest evaluation")]
    if final["heldout/win_rate"] is not None:
        cards.append((f"{final['heldout/win_rate']:.0%}", "of the held-out prompts won against the start policy"))
    if best is not None:
        cards.append((str(best["iteration"]), "iterations of the policy that did best on held-out prompts"))
    return cards


def _cards(summary: TrainSummary) -> list[tuple[str, str]]:
    cards = [(_change(summary, "scoring/score_mean"), "score, first and last iteration")]
    if "eval/scores" in summary.final:
        cards.append((_change(summary, "eval/scores"), "evaluation score, first and last iteration"))
    return [
        *cards,
        (f"{_number(summary.final['objective/kl'])} nats", "KL per completion at the end"),
        (f"{100 * summary.exposed_wait_share:.2g}%", "of the time spent waiting for scores"),
    ]


def _samples(samples: Sequence[Mapping[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The rows of each table, by the iteration."""
    if not samples:
        return {}
    iterations = dict.fromkeys((samples[0]["iteration"], samples[-1]["iteration"]))
    return {each: [_sample(row) for row in samples if row["iteration"] == each] for each in iterations}


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    length = f"{row['num_tokens']}{'' if row['finished'] else ', cut'}"
    return {
        "prompt": str(row.get("prompt_text", row["prompt"])),
        "completion": row["completion"] or "(empty)",
        "figures": [length, _number(row["score"]), _number(row["kl"])],
    }


def _change(summary: TrainSummary, metric: str) -> str:
    return f"{_number(summary.first.get(metric))} → {_number(summary.final.get(metric))}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
