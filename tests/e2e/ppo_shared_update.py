"""One update on given rollouts, shared out over the processes that it is started with; writes what came of it.

python ppo_shared_update.py POLICY OUTPUT CASE SETTINGS, which are JSON; or torchrun --nproc-per-node 2 the same.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from plaudit_ppo import PPOConfig, TrunkCritic, add_lora, load_critic, load_policy
from plaudit_ppo.distributed import learner_setup
from plaudit_ppo.distributed.collectives import share
from plaudit_ppo.distributed.learner import trained
from plaudit_ppo.distributed.learner_setup import make_optimizer
from plaudit_ppo.distributed.processes import end_processes
from plaudit_ppo.errors import DivergenceError
from plaudit_ppo.models.sharding import whole_state
from plaudit_ppo.rollout.forward import evaluate_rollouts
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.sampling import sample_rollouts
from plaudit_ppo.termination import leave
from plaudit_ppo.training.experience import make_experience
from plaudit_ppo.training.gathering import gather_experience
from plaudit_ppo.training.learning_rates import set_learning_rates
from plaudit_ppo.training.metrics import rollout_metrics
from plaudit_ppo.training.update import run_update

NAN = float("nan")
SCORES = {
    "some failed": [1.0, -2.0, 0.5, 3.0, 0.0, -1.0, NAN, 4.0, NAN, NAN, -6.0, NAN],
    "one process without a score": [1.0, -2.0, 0.5, 3.0, 0.0, -1.0, *[NAN] * 6],
    "a gradient that is no number": [1.0] * 12,
}
SCORES["adamw"] = SCORES["some failed"]
PROMPTS = [[2, 3], [4], [5, 6, 7], [2], [3, 3, 3, 3], [6]] * 2


def make_sgd(model, config):
    """Adam would hide the size of the gradient."""
    return torch.optim.SGD(trained(model), lr=0.5)


def spoil(module, inputs, output):
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * NAN)


def main(policy_path: str, output: str, case: str, settings: str) -> None:
    config = PPOConfig(**{
        "epochs": 2, "micro_batch_size": 4, "max_grad_norm": 0.5, "temperature": 1.0, "missing_eos": "off",
        "whiten_rewards": True, "kl_loss_coef": 0.1, "kl_estimator": "k3", "ratio_tolerance": 1e-3,
        "learning_rate": 1e-2, "sampling_correction": "token_truncate",
        "clip_range_high": 0.28, "dual_clip": 3.0, "entropy_coef": 0.01, "max_completion_tokens": 12,
        "overlong_buffer_tokens": 6, **json.loads(settings),
    })  # fmt: skip
    accelerator = Accelerator()
    policy, _ = load_policy(policy_path)
    reference, _ = load_policy(policy_path)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.9)
    generator = torch.Generator().manual_seed(1)
    if config.critic_trunk == "policy":
        critic = TrunkCritic(policy, head_init="normal", generator=generator)
    else:
        critic = load_critic(policy_path, head_init="normal", generator=generator)
    policy = add_lora(policy, config) if config.lora_rank else policy
    whole = sample_rollouts(
        policy, *pad_left(PROMPTS, 1), max_tokens=12, temperature=1.0, eos_ids=[0], pad_id=1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    noise = torch.randn(whole.sampled_logprobs.shape, generator=torch.Generator().manual_seed(2))
    whole = replace(whole, sampled_logprobs=whole.sampled_logprobs + noise)  # of a sampler that is another model
    rows = torch.tensor(share(accelerator, range(len(whole))))
    rollouts, scores = whole.select(rows), torch.tensor(SCORES[case])[rows]
    reference = learner_setup.prepare_reference(reference, config, accelerator)
    learner_setup.make_optimizer = make_optimizer if case == "adamw" else make_sgd
    learner = learner_setup.make_learner(policy, critic, config, accelerator)
    if case == "adamw":
        set_learning_rates(learner.optimizers, config, 0)
    logprobs, ref_logprobs, values = evaluate_rollouts(
        learner.policy, reference, learner.critic, rollouts, temperature=1.0, micro_batch_size=4,
        chunk_tokens=config.logits_chunk_tokens,
    )  # fmt: skip
    experience = make_experience(
        rollouts, scores, logprobs=logprobs, ref_logprobs=ref_logprobs, values=values, kl_coef=0.1, config=config,
        total=accelerator.reduce,
    )  # fmt: skip
    everyone, all_scores = gather_experience(accelerator, experience), accelerator.gather(scores)
    metrics = rollout_metrics(everyone, all_scores, kl_coef=0.1, group_size=2)
    if case == "a gradient that is no number":
        policy.get_input_embeddings().register_forward_hook(spoil)
    try:
        metrics |= run_update(learner, experience, config, generator=torch.Generator().manual_seed(0))
    except DivergenceError as error:
        metrics["error"] = str(error)
    states = {
        name: whole_state(accelerator.unwrap_model(model), keep=True)
        for name, model in (("policy", learner.policy), ("critic", learner.critic))
    }
    if accelerator.is_main_process:
        tensors = {f"{name}.{key}": value.clone() for name, state in states.items() for key, value in state.items()}
        tensors["advantages"], tensors["returns"] = everyone.advantages, everyone.returns
        save_file(tensors, f"{output}.safetensors")
        metrics["processes"] = accelerator.num_processes
        Path(f"{output}.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_processes()
    leave(0)
