"""The forward passes on other architectures than the Llama of the other tests."""

import pytest
import torch
from tiny_trainer import SIZES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto import CONFIG_MAPPING

from plaudit_ppo.models.critic import Critic
from plaudit_ppo.models.networks import disable_dropout
from plaudit_ppo.rollout.forward import completion_logits, completion_values, token_logprobs
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.sampling import sample_rollouts
from plaudit_ppo.training.metrics import sampling_ratio_error

GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 32, "num_labels": 1}
ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt_neox", "gpt2", "opt"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_generating_and_training_forward_agree_and_padding_changes_nothing(architecture):
    """Details 1 and 23: with the key-value cache and without, beside longer prompts and alone."""
    config = CONFIG_MAPPING[architecture](**(GPT2 if architecture == "gpt2" else SIZES))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = disable_dropout(AutoModelForCausalLM.from_config(config))
        critic = disable_dropout(Critic(AutoModelForSequenceClassification.from_config(config)))
    rollouts = sample_rollouts(
        policy,
        *pad_left([[2, 3], [4, 5, 6, 7, 8, 9], [10]], 1),
        max_tokens=8,
        temperature=1.0,
        eos_ids=[0],
        pad_id=10**6,
        generator=torch.Generator().manual_seed(1),
    )
    logprobs = token_logprobs(completion_logits(policy, rollouts, temperature=1.0), rollouts)
    values = completion_values(critic, rollouts)
    assert sampling_ratio_error(rollouts.sampled_logprobs, logprobs, rollouts.completion_mask) < 1e-4
    for row in range(3):
        alone = rollouts.select(torch.tensor([row]))
        T = alone.completion_ids.shape[1]
        own = token_logprobs(completion_logits(policy, alone, temperature=1.0), alone)
        assert torch.allclose(logprobs[row, :T], own[0], atol=1e-4)
        assert torch.allclose(values[row, :T], completion_values(critic, alone)[0], atol=1e-4)
