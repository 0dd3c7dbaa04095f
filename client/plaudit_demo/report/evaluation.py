"""A policy's completions of the held-out prompts, with gold reward, score and KL of each."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_client import RewardClient
from plaudit_demo.data.gold import gold_reward
from plaudit_demo.data.sampling import Completion, sample_completions
from plaudit_demo.errors import DemoError
from plaudit_ppo.algorithm.kl import kl_k1
from plaudit_ppo.rollout.forward import completion_logits, token_logprobs
from plaudit_ppo.rollout.rollouts import Rollouts


@dataclass(frozen=True)
class Evaluation:
    """Rollouts of one policy, one per prompt, in the order of the prompts.

    Attributes:
        completions: what the policy wrote.
        gold: gold reward of each.
        scores: the reward model's score of each.
        kl: sum over tokens of logprob - ref_logprob of each, in nats.
        fingerprint: of the bundle that scored.
    """

    completions: list[Completion]
    gold: list[float]
    scores: list[float]
    kl: list[float]
    fingerprint: str

    @property
    def tokens_mean(self) -> float:
        """Mean length of the completions, in tokens, EOS included."""
        return statistics.fmean(completion.num_tokens for completion in self.completions)

    @property
    def gold_mean(self) -> float:
        """Mean gold reward."""
        return statistics.fmean(self.gold)

    @property
    def gold_std(self) -> float:
        """Standard deviation of the gold reward over rollouts."""
        return statistics.stdev(self.gold)

    @property
    def score_mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)

    @property
    def score_std(self) -> float:
        """Standard deviation of the score over rollouts."""
        return statistics.stdev(self.scores)

    @property
    def kl_mean(self) -> float:
        """Mean KL, in nats per completion."""
        return statistics.fmean(self.kl)


def evaluate(
    policy: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    client: RewardClient,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Evaluation:
    """Sample one completion per prompt and measure it.

    Args:
        policy: in evaluation mode.
        reference: the anchor of the KL.
        tokenizer: of both.
        prompts: what is completed.
        client: of the service that scores.
        max_tokens: of a completion, EOS included.
        temperature: of the sampling; the KL is that of the tempered distributions.
        seed: of the sampling.

    Raises:
        DemoError: a completion got no score.
    """
    kl: list[float] = []

    @torch.no_grad()
    def measure(rollouts: Rollouts) -> None:
        logprobs, ref_logprobs = (
            token_logprobs(completion_logits(model, rollouts, temperature=temperature), rollouts)
            for model in (policy, reference)
        )
        kl.extend(kl_k1(logprobs, ref_logprobs).sum(1).tolist())

    completions = sample_completions(
        policy, tokenizer, prompts, max_tokens=max_tokens, temperature=temperature, seed=seed, on_batch=measure
    )
    items = [
        {"prompt": prompt, "completion": completion.text, "finished": completion.finished}
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    answer = client.score(items)
    scores = []
    for result in answer:
        if result.score is None:
            raise DemoError(f"the service did not score a completion: {result.status} ({result.detail})")
        scores.append(result.score)
    gold = [gold_reward(prompt, completion.text) for prompt, completion in zip(prompts, completions, strict=True)]
    return Evaluation(completions, gold, scores, kl, str(answer.fingerprint))


def sample_rows(prompts: Sequence[str], before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """What both policies wrote for each prompt, with all figures, for a JSONL file and the page."""

    def row(evaluation: Evaluation, index: int) -> dict[str, Any]:
        return {
            "completion": evaluation.completions[index].text,
            "gold": evaluation.gold[index],
            "score": evaluation.scores[index],
            "kl": evaluation.kl[index],
        }

    return [
        {"prompt": prompt, "before": row(before, index), "after": row(after, index)}
        for index, prompt in enumerate(prompts)
    ]
