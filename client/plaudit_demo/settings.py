"""Every size and hyper-parameter of the demo."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """The sizes of the loop; the defaults take about three minutes on two cores.

    Cores: the trainer computes on one thread and the service's engine on another, so on two cores neither waits for the
    other. The numbers are fixed, whatever the machine has, because the order of floating-point sums depends on them.
    Two torch threads would warm up 1.5 times as fast on an idle machine, and were ten times as slow on a busy one.

    Attributes:
        seed: everything random is drawn from it.
        trainer_threads: torch threads.
        service_threads: threads of the service's engine.
        policy_hidden_size: width of policy and critic; their MLPs are three times as wide.
        policy_layers: decoder layers of policy and critic.
        reward_model_hidden_size: width of the reward model.
        reward_model_layers: its decoder layers.
        policy_vocab_size: tokens of the policy's byte-level BPE.
        max_completion_tokens: sampling stops here without EOS.
        temperature: of all sampling: preference pairs, PPO rollouts, evaluation.
        corpus_examples: texts to warm up on.
        warm_up_steps: optimizer steps of the warm-up.
        warm_up_batch: texts per step.
        warm_up_learning_rate: its peak.
        num_pairs: completion pairs sampled to train the reward model on.
        num_held_out_pairs: completion pairs to measure it on.
        reward_model_epochs: passes over the pairs.
        reward_model_batch: pairs per step.
        reward_model_learning_rate: its peak.
        ppo_iterations: rollout + update.
        ppo_rollouts: rollouts per iteration.
        ppo_micro_batch: rollouts generated and sent to the service together.
        ppo_minibatches: optimizer steps per epoch, of 4 epochs.
        ppo_warm_up_iterations: over which its learning rate rises; then it falls linearly to 0.
        ppo_learning_rate: of policy and critic, its peak.
        kl_coef: beta, the weight of the KL penalty.
        num_held_out_prompts: prompts that neither the reward model nor PPO sees, for the figures before and after.
    """

    seed: int = 17
    trainer_threads: int = 1
    service_threads: int = 1
    policy_hidden_size: int = 96
    policy_layers: int = 2
    reward_model_hidden_size: int = 64
    reward_model_layers: int = 2
    policy_vocab_size: int = 400
    max_completion_tokens: int = 64
    temperature: float = 1.0
    corpus_examples: int = 4000
    warm_up_steps: int = 200
    warm_up_batch: int = 32
    warm_up_learning_rate: float = 3e-3
    num_pairs: int = 3000
    num_held_out_pairs: int = 500
    reward_model_epochs: int = 2
    reward_model_batch: int = 32
    reward_model_learning_rate: float = 1.5e-3
    ppo_iterations: int = 40
    ppo_rollouts: int = 64
    ppo_micro_batch: int = 32
    ppo_minibatches: int = 2
    ppo_warm_up_iterations: int = 5
    ppo_learning_rate: float = 4e-4
    kl_coef: float = 0.03
    num_held_out_prompts: int = 256
