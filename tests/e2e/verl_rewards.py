"""verl's reward loop in Ray, started as verl's trainer starts it, on rollouts that are given as texts.

python verl_rewards.py POLICY ROLLOUTS RESULT OVERRIDE...     ROLLOUTS: JSON, pairs of prompt and completion
"""

import json
import sys
from pathlib import Path

import numpy as np
import ray
import torch
from hydra import compose, initialize_config_module
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager, RewardLoopWorker, migrate_legacy_reward_impl
from verl.trainer.main_ppo import run_ppo


def main(policy, rollouts, result, *overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[f"actor_rollout_ref.model.path={policy}", *overrides])
    batch = to_batch(AutoTokenizer.from_pretrained(policy), json.loads(rollouts))

    @ray.remote
    class Runner:
        """In the place of verl's TaskRunner, which would also start what needs a GPU."""

        def run(self, config):
            scored = score(migrate_legacy_reward_impl(config), batch)
            Path(result).write_text(json.dumps(scored))

    run_ppo(config, task_runner_class=Runner)


def score(config, batch):
    """What the trainer gets: the rewards of every token, and what is logged beside them."""
    if (
        config.reward.reward_model.enable
    ):  # its server needs a GPU; ours is at the address that is given as its engine's
        return score_by_classify(config, batch)
    scored = RewardLoopManager(config).compute_rm_score(batch)
    extra = {name: values.tolist() for name, values in scored.non_tensor_batch.items()}
    return {"rewards": scored.batch["rm_scores"].tolist(), "extra": extra}


def score_by_classify(config, batch):
    address = config.reward.reward_model.rollout.engine_kwargs.plaudit
    worker = ray.remote(RewardLoopWorker).remote(config, address)
    return [answer["reward_score"] for answer in ray.get(worker.compute_score_batch.remote(batch))]


def to_batch(tokenizer, rollouts):
    """Prompts padded on the left, completions on the right, as verl's rollout pads them."""
    chats = [[{"role": "user", "content": prompt}] for prompt, _ in rollouts]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    completions = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for _, text in rollouts]
    P, T, pad = max(map(len, prompts)), max(map(len, completions)), tokenizer.pad_token_id
    masks = [
        [0] * (P - len(prompt)) + [1] * (len(prompt) + len(completion)) + [0] * (T - len(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    raw_prompts = np.empty(len(chats), dtype=object)
    raw_prompts[:] = chats
    return DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([[pad] * (P - len(ids)) + ids for ids in prompts]),
            "responses": torch.tensor([ids + [pad] * (T - len(ids)) for ids in completions]),
            "attention_mask": torch.tensor(masks),
        },
        non_tensors={
            "raw_prompt": raw_prompts,
            "data_source": np.array(["test"] * len(chats)),
            "reward_model": np.array([{"ground_truth": ""}] * len(chats)),
            "extra_info": np.array([{"prompt": chat} for chat in chats]),
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
