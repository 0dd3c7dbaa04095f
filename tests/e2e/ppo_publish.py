"""Publishes a policy to an engine and samples by it, over the processes that it is started with.

python ppo_publish.py POLICY OUTPUT SETTINGS, which are JSON; or torchrun --nproc-per-node 2 the same.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from plaudit_ppo import PPOConfig, add_lora, load_critic, load_policy
from plaudit_ppo.distributed.collectives import share
from plaudit_ppo.distributed.learner_setup import make_learner
from plaudit_ppo.distributed.processes import end_processes, make_accelerator
from plaudit_ppo.engine.sampler import EngineSampler
from plaudit_ppo.termination import leave

PROMPTS = [[2, 3], [4], [5, 6, 7], [2], [3, 3, 3, 3], [6]]


def main(policy_path: str, output: str, settings: str) -> None:
    config = PPOConfig(
        sampler="vllm", engine_sync_dir=f"{output}/versions", temperature=1.0, max_completion_tokens=8,
        rollout_batch_size=len(PROMPTS), rollout_micro_batch_size=2, num_minibatches=2, **json.loads(settings),
    )  # fmt: skip
    accelerator = make_accelerator(config)
    policy, tokenizer = load_policy(policy_path)
    critic = load_critic(policy_path, head_init="zero", generator=torch.Generator())
    policy = add_lora(policy, config) if config.lora_rank else policy
    learner = make_learner(policy, critic, config, accelerator)
    sampler = EngineSampler(config, learner, tokenizer, PROMPTS, eos_ids=(0,), pad_id=1)
    sampler.publish(3)
    with sampler.sampling(share(accelerator, PROMPTS), iteration=3) as micro_batches:
        ids = [part.completion_ids[row][part.completion_mask[row]].tolist() for part in micro_batches
               for row in range(len(part))]  # fmt: skip
    completions = gather_object(ids)
    if accelerator.is_main_process:
        result = {"completions": completions, "canary": sampler.canary_error, "processes": accelerator.num_processes}
        Path(output, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_processes()
    leave(0)
