from contextlib import nullcontext

import rollouts
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plaudit_ppo import PPOConfig
from plaudit_ppo.rollout.samplers import LocalSampler


def test_a_sampler_is_measured_by_the_tokens_that_it_gives():
    policy = LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    )).eval()  # fmt: skip
    config = PPOConfig(max_completion_tokens=4)
    sampler = LocalSampler(
        config, lambda: nullcontext(policy), eos_ids=(40,), pad_id=1, device=torch.device("cpu"), rank=0
    )
    figures = rollouts.measure(sampler, [[2, 3], [4]], repeats=1)
    assert figures["tokens_per_second"] > 0
    assert (figures["length_p5"], figures["length_p95"]) == (4.0, 4.0)  # no token 40 is ever sampled
