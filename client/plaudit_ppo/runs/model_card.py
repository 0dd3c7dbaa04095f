"""The model card of a trained policy."""

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plaudit_ppo.config import PLACES, PPOConfig
from plaudit_ppo.models.places import hub_commit
from plaudit_ppo.runs.summary import TrainSummary
from plaudit_ppo.settings_text import to_toml

_FIGURES = {
    "score of the reward model": "scoring/score_mean",
    "its standard deviation": "scoring/score_std",
    "score of the evaluation scorer": "eval/scores",
    "KL from the start, nats per completion": "objective/kl",
    "tokens per completion": "tokens/completion_mean",
    "completions that end with EOS": "val/eos_share",
}

_HELD_OUT_FIGURES = {
    "score of the reward model": "heldout/scores",
    "score of the evaluation scorer": "heldout/eval_scores",
    "share of prompts won against the start policy": "heldout/win_rate",
    "KL from the start, nats per completion": "heldout/kl",
    "tokens per completion": "heldout/tokens_mean",
    "completions that end with EOS": "heldout/eos_share",
}


def model_card(config: PPOConfig, summary: TrainSummary, *, fingerprint: str | None) -> str:
    """The README.md of a trained policy, in the Hugging Face hub's form.

    Args:
        config: of the run.
        summary: of the run.
        fingerprint: of the reward model; None: the scorer did not tell.
    """
    base = hub_commit(config.policy)
    base_model = f"base_model: {base[0]}\n" if base else ""
    start = _named(config.policy) if config.policy else "a causal language model"
    critic = f"- critic: from {_named(config.critic)}\n" if config.critic else ""
    rows = _rows(_FIGURES, summary.first, summary.final)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [ppo, rlhf, plaudit]
{base_model}---

# {Path(config.output).name}

{start}, trained by PPO against a reward model with plaudit.

| mean over rollouts | first iteration | last iteration |
|---|---|---|
{rows}

- {summary.extent}; sampled at temperature
  {config.temperature:g}, which these figures are for
- scoring: {summary.scoring}
- reward model: {fingerprint or "of a scorer that tells no fingerprint"}
{critic}- {_versions()}

The score is what the policy was trained on, so it says nothing about quality by itself.

## Held-out evaluation

{_held_out(config, summary)}

## Settings

```toml
{_settings(config)}
```
"""


def _held_out(config: PPOConfig, summary: TrainSummary) -> str:
    if not summary.held_out:
        return (
            "None was made: the run had no `eval_prompts`. The figures above are of prompts that the policy was\n"
            "trained on. How it does on others, nobody has measured here."
        )
    first, last = summary.held_out[0], summary.held_out[-1]
    decoding = "the likeliest tokens" if config.eval_decoding == "greedy" else "tokens sampled as in training"
    iterations = f"iteration {first['iteration']} | iteration {last['iteration']}"
    return f"""| mean over prompts that the policy was not trained on | {iterations} |
|---|---|---|
{_rows(_HELD_OUT_FIGURES, first, last)}

Completions are of {decoding}. Iteration 0 is the start policy."""


def _rows(figures: Mapping[str, str], first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Lines of a table, for the figures that there are."""
    return "\n".join(
        f"| {label} | {_number(first.get(name))} | {_number(last.get(name))} |"
        for label, name in figures.items()
        if {first.get(name), last.get(name)} != {None}
    )


def _named(source: str) -> str:
    """A checkpoint without the paths of this machine."""
    found = hub_commit(source)
    return f"`{found[0]}` at commit `{found[1]}`" if found else f"`{Path(source).name}`"


def _settings(config: PPOConfig) -> str:
    lines = (line for line in to_toml(config).splitlines() if not line.startswith("#"))
    return "\n".join(line for line in lines if line.partition(" =")[0] not in PLACES)


def _versions() -> str:
    packages = ("plaudit", "torch", "transformers")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return ", ".join([*versions, f"Python {platform.python_version()}, {platform.machine()}"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
