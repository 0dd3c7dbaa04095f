"""What one PPO run of a study is: where everything lies, and the hyper-parameters that both trainers are given.

Knows nothing of torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run. `plaudit_trainer` and `trl_trainer` translate it; docs/studies-details.md has the table.

    Attributes:
        trainer: which one; "trl-same-draws": TRL's, with the random draws of plaudit's.
        ground: directory of the demo's models and prompts.
        url: of the service that scores.
        output: directory of what the trainer leaves.
        seed: random seed.
        kl_coef: beta.
        iterations: rollout + update.
        evaluate_every: iterations from one evaluation to the next; 0: none.
        missing_eos: "replace" (score -1) or "subtract" (1 from the score), the only way that TRL has.
        max_grad_norm: 0: gradients are not clipped, as in TRL.
        rollouts: per iteration.
        micro_batch: rollouts generated together, and per forward and backward pass.
        minibatches: optimizer steps per epoch.
        epochs: over each rollout batch.
        max_completion_tokens: sampling stops here without EOS.
        temperature: of all sampling.
        learning_rate: its peak, of policy and critic.
        warm_up_iterations: over which it rises; then it falls linearly to 0.
        engine_url: of the vLLM server in bfloat16 that samples; empty: the policy in the trainer's process does.
        max_staleness: of the trainer: 1 where the server samples ahead.
        clip_range: of the policy's ratio; 0.2 is what TRL has too.
    """

    trainer: Literal["plaudit", "trl", "trl-same-draws"]
    ground: str
    url: str
    output: str
    seed: int
    kl_coef: float
    iterations: int
    evaluate_every: int
    missing_eos: Literal["replace", "subtract"]
    max_grad_norm: float
    rollouts: int
    micro_batch: int
    minibatches: int
    epochs: int
    max_completion_tokens: int
    temperature: float
    learning_rate: float
    warm_up_iterations: int
    engine_url: str = ""
    max_staleness: int = 0
    clip_range: float = 0.2

    @property
    def policy(self) -> Path:
        """The SFT policy, from which policy, reference and critic start."""
        return Path(self.ground) / "policy-warmed-up"

    @property
    def prompts(self) -> Path:
        """The prompts to train on."""
        return Path(self.ground) / "prompts.jsonl"

    @property
    def held_out_prompts(self) -> Path:
        """The prompts to evaluate on."""
        return Path(self.ground) / "held-out-prompts.jsonl"
