"""What a run of the demo has measured, and the summary of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plaudit_demo.report.evaluation import Evaluation
from plaudit_demo.service import Latency
from plaudit_demo.settings import DemoSettings


@dataclass(frozen=True)
class Results:
    """Everything that the page shows.

    Attributes:
        settings: what ran.
        prompts: the held-out prompts.
        before: the warmed-up policy on them.
        after: the policy after PPO on them.
        log: the trainer's metrics, one row per iteration.
        pair_accuracy: of the reward model, on held-out pairs.
        best_pair_accuracy: what the gold reward itself would reach on them.
        num_pairs: that the reward model was trained on.
        latency: of the service, over the whole run.
        exposed_wait_share: share of the PPO time in which training stood still for scores.
        masked_share: share of the rollouts that got no score.
        seconds: of the whole run.
        stage_seconds: of each stage, by its title.
    """

    settings: DemoSettings
    prompts: Sequence[str]
    before: Evaluation
    after: Evaluation
    log: Sequence[dict[str, Any]]
    pair_accuracy: float
    best_pair_accuracy: float
    num_pairs: int
    latency: Latency
    exposed_wait_share: float
    masked_share: float
    seconds: float
    stage_seconds: dict[str, float]

    @property
    def exposed_wait(self) -> str:
        """The exposed wait as text: two digits, however small it is."""
        return f"{100 * self.exposed_wait_share:.2g}%"

    def summary(self) -> dict[str, Any]:
        """The figures of `summary.json`. All but `timing` are the same in every run of one machine."""
        return {
            "gold_reward_start": self.before.gold_mean,
            "gold_reward_end": self.after.gold_mean,
            "gold_reward_start_std": self.before.gold_std,
            "rm_score_start": self.before.score_mean,
            "rm_score_end": self.after.score_mean,
            "rm_score_start_std": self.before.score_std,
            "kl_end": self.after.kl_mean,
            "completion_tokens_start": self.before.tokens_mean,
            "completion_tokens_end": self.after.tokens_mean,
            "rm_pair_accuracy": self.pair_accuracy,
            "best_pair_accuracy": self.best_pair_accuracy,
            "num_pairs": self.num_pairs,
            "num_held_out_prompts": len(self.prompts),
            "iterations": len(self.log),
            "masked_share": self.masked_share,
            "kl_coef": self.settings.kl_coef,
            "seed": self.settings.seed,
            "fingerprint": self.after.fingerprint,
            "timing": {
                "seconds": round(self.seconds, 2),
                "exposed_wait_share": self.exposed_wait_share,
                "score_request_mean_s": self.latency.mean_s,
                "ppo_iteration_mean_s": sum(row["time/iteration_s"] for row in self.log) / len(self.log),
                "stages": {title: round(seconds, 2) for title, seconds in self.stage_seconds.items()},
            },
        }
