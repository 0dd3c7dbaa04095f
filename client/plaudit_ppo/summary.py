"""What a run has come to: its summary, made of its log alone, and the model card of its policy."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from plaudit_ppo.config import PPOConfig, to_toml

PLACES = (
    "policy",
    "critic",
    "prompts",
    "output",
    "scorer_urls",
    "eval_scorer_urls",
)  # of this machine, not of the run
_FIGURES = {
    "score of the reward model": "scoring/score_mean",
    "its standard deviation": "scoring/score_std",
    "score of the evaluation scorer": "eval/scores",
    "KL from the start, nats per completion": "objective/kl",
    "tokens per completion": "tokens/completion_mean",
    "completions that end with EOS": "val/eos_share",
}


@dataclass(frozen=True)
class TrainSummary:
    """A finished run, the parts before a resume included.

    Attributes:
        iterations: how many there were.
        episodes: rollouts sampled.
        seconds: of all iterations.
        call_s: seconds that the calls to the scorer took, added up.
        exposed_wait_s: seconds that training stood still for scores.
        masked_share: share of the rollouts that got no score.
        retries: requests that had to be repeated; None for a scorer that does not count them.
        first: the metrics of the first iteration.
        final: the metrics of the last iteration.
    """

    iterations: int
    episodes: int
    seconds: float
    call_s: float
    exposed_wait_s: float
    masked_share: float
    retries: int | None
    first: Mapping[str, Any]
    final: Mapping[str, Any]

    @property
    def exposed_wait_share(self) -> float:
        """Share of the time in which training stood still for scores."""
        return self.exposed_wait_s / self.seconds

    @property
    def extent(self) -> str:
        """How much there was, in words."""
        plural = "" if self.iterations == 1 else "s"
        return f"{self.iterations} iteration{plural}, {self.episodes} rollouts in {_duration(self.seconds)}"

    @property
    def scoring(self) -> str:
        """What scoring cost, in words."""
        repeated = "repeated requests are not counted" if self.retries is None else f"{self.retries} requests repeated"
        return (
            f"{_duration(self.call_s)} of calls, {100 * self.exposed_wait_share:.2g}% of the time spent waiting for "
            f"them, {self.masked_share:.2%} of the rollouts without a score, {repeated}"
        )

    def to_json(self) -> dict[str, Any]:
        """What summary.json holds."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return values | {"exposed_wait_share": self.exposed_wait_share}


NOTHING_YET = TrainSummary(
    iterations=0,
    episodes=0,
    seconds=1.0,
    call_s=0.0,
    exposed_wait_s=0.0,
    masked_share=0.0,
    retries=None,
    first={},
    final={},
)


def summarize(log: Sequence[Mapping[str, Any]]) -> TrainSummary:
    """The summary of a run.

    Args:
        log: the lines of its log.jsonl, at least one.
    """
    retries = [line["scoring/retries"] for line in log]
    return TrainSummary(
        iterations=len(log),
        episodes=log[-1]["episode"],
        seconds=sum(line["time/iteration_s"] for line in log),
        call_s=sum(line["scoring/call_s"] for line in log),
        exposed_wait_s=sum(line["scoring/exposed_wait_s"] for line in log),
        masked_share=sum(line["scoring/masked_share"] for line in log) / len(log),
        retries=None if None in retries else sum(retries),
        first=log[0],
        final=log[-1],
    )


def model_card(config: PPOConfig, summary: TrainSummary, *, fingerprint: str | None) -> str:
    """The README.md of a trained policy, in the Hugging Face hub's form.

    Args:
        config: of the run.
        summary: of the run.
        fingerprint: of the reward model; None: the scorer did not tell.
    """
    start = f"`{Path(config.policy).name}`" if config.policy else "a causal language model"
    rows = [
        f"| {label} | {_number(summary.first[name])} | {_number(summary.final[name])} |"
        for label, name in _FIGURES.items()
        if name in summary.final
    ]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [ppo, rlhf, plaudit]
---

# {Path(config.output).name}

{start}, trained by PPO against a reward model with plaudit.

| mean over rollouts | first iteration | last iteration |
|---|---|---|
{chr(10).join(rows)}

- {summary.extent}; sampled at temperature
  {config.temperature:g}, which these figures are for
- scoring: {summary.scoring}
- reward model: {fingerprint or "of a scorer that tells no fingerprint"}
- {_versions()}

The score is what the policy was trained on, so it says nothing about quality by itself.

## Settings

```toml
{_settings(config)}
```
"""


def _settings(config: PPOConfig) -> str:
    lines = (line for line in to_toml(config).splitlines() if not line.startswith("#"))
    return "\n".join(line for line in lines if line.partition(" =")[0] not in PLACES)


def _versions() -> str:
    packages = ("plaudit", "torch", "transformers")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return ", ".join([*versions, f"Python {platform.python_version()}, {platform.machine()}"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"
