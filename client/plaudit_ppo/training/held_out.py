"""Figures of held-out prompts: means, the win rate against the start policy, and which evaluation is the best.

Pure: who completes and scores the prompts is in `evaluation`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit_ppo.training.metrics import masked_mean

HELD_OUT_METRICS = {
    "heldout/scores": "score of the held-out completions, as the scorer answered it, mean over the completions with a "
    "score",
    "heldout/eval_scores": "score of the evaluation scorer, mean over the completions that it scored; null without an "
    "evaluation scorer",
    "heldout/win_rate": "share of the held-out prompts whose completion scores higher than the start policy's, a tie "
    "as half; null if the run began without evaluations",
    "heldout/kl": "sum over tokens of logprob - ref_logprob, mean over completions; nats",
    "heldout/tokens_mean": "length of a completion, with EOS, mean over completions",
    "heldout/eos_share": "share of the completions that end with EOS or a stop string",
    "heldout/masked_share": "share of the completions without a score",
    "time/heldout_s": "seconds for the evaluation",
}


# A line of evaluations.jsonl: iteration, metrics, and the score of each held-out prompt.
Evaluation = Mapping[str, Any]


def metrics_of(evaluation: Evaluation) -> dict[str, float | None]:
    """What of an evaluation is for trackers, Prometheus and the summary: its iteration and metrics."""
    return {name: evaluation[name] for name in ("iteration", *HELD_OUT_METRICS)}


def held_out_metrics(
    *,
    scores: Tensor,
    eval_scores: Tensor | None,
    start_scores: Tensor | None,
    kl: Tensor,
    lengths: Tensor,
    finished: Tensor,
) -> dict[str, float | None]:
    """The metrics of one evaluation, but for its time.

    Args:
        scores: shape (B,), float32, NaN where scoring failed.
        eval_scores: likewise, of the evaluation scorer; None: there is none.
        start_scores: likewise, of the start policy's completions; None: they are not known.
        kl: shape (B,), float32, of each completion, nats.
        lengths: shape (B,), of each completion, tokens.
        finished: shape (B,), bool.
    """
    scored = ~scores.isnan()
    return {
        "heldout/scores": masked_mean(scores, scored),
        "heldout/eval_scores": None if eval_scores is None else masked_mean(eval_scores, ~eval_scores.isnan()),
        "heldout/win_rate": None if start_scores is None else win_rate(scores, start_scores),
        "heldout/kl": float(kl.mean()),
        "heldout/tokens_mean": float(lengths.float().mean()),
        "heldout/eos_share": float(finished.float().mean()),
        "heldout/masked_share": float((~scored).float().mean()),
    }


def win_rate(scores: Tensor, start_scores: Tensor) -> float | None:
    """Share of the prompts at which a policy has the higher score.

    w = mean(1 if s > s0, 1/2 if s = s0, 0 if s < s0), over the prompts at which both have a score.
    Stiennon et al. 2020, section 4, arXiv 2009.01325, with a reward model in place of people; ties as half a win.

    Args:
        scores: shape (B,), float32, NaN where scoring failed.
        start_scores: likewise, of the policy that it is compared with.

    Returns:
        0 to 1; None where no prompt has both.
    """
    both = ~scores.isnan() & ~start_scores.isnan()
    wins = (scores > start_scores).float() + 0.5 * (scores == start_scores).float()
    return masked_mean(wins, both)


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation of a trained policy with the highest mean score, the earliest of equal ones; None: there is none.

    The score of the evaluation scorer decides, which is not trained on, where it has given one; else the training's.

    Args:
        evaluations: of a run; that of the start policy does not count.
    """
    trained = [line for line in evaluations if line["iteration"] > 0]
    for metric in ("heldout/eval_scores", "heldout/scores"):
        known = [line for line in trained if line[metric] is not None]
        if known:
            return max(known, key=lambda line: float(line[metric]))
    return None


def as_tensor(scores: Sequence[float | None]) -> Tensor:
    """Scores as they are kept in a file, None for NaN."""
    return torch.tensor([float("nan") if score is None else score for score in scores])


def as_list(scores: Tensor) -> list[float | None]:
    """The contrary of `as_tensor`."""
    return [None if score != score else score for score in scores.tolist()]
