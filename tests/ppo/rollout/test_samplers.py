from contextlib import nullcontext

import pytest
import torch

from plaudit_ppo import PPOConfig
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.samplers import LocalSampler
from plaudit_ppo.rollout.sampling import sample_rollouts
from plaudit_ppo.rollout.seeding import seeded_generator

PROMPTS = [[2, 3], [4], [5, 6, 7], [8], [9, 10]]
CPU = torch.device("cpu")


@pytest.mark.parametrize("rank", [0, 2])
def test_the_local_sampler_draws_all_micro_batches_from_one_random_sequence_of_its_process(policy, rank):
    config = PPOConfig(seed=7, rollout_micro_batch_size=2, max_completion_tokens=4, temperature=1.0)
    sampler = LocalSampler(config, lambda: nullcontext(policy), eos_ids=(0,), pad_id=1, device=CPU, rank=rank)
    generator = seeded_generator(CPU, 7, "sampling", 3, *([rank] if rank else []))
    sampler.publish(3)
    with sampler.sampling(PROMPTS, iteration=3) as micro_batches:
        parts = list(micro_batches)
    assert [len(part) for part in parts] == [2, 2, 1]
    for first, part in zip((0, 2, 4), parts, strict=True):
        ids, mask = pad_left(PROMPTS[first : first + 2], 1)
        expected = sample_rollouts(
            policy, ids, mask, max_tokens=4, temperature=1.0, eos_ids=(0,), pad_id=1, generator=generator
        )
        assert torch.equal(part.completion_ids, expected.completion_ids)
        assert torch.equal(part.sampled_logprobs, expected.sampled_logprobs)
