"""What a run trains: policy, critic and their optimizers, and the steps of an update.

Knows nothing of PPO. The learner under DeepSpeed is in `deepspeed_learner`; `learner_setup` makes either.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from plaudit_ppo.models.sharding import shard_like, unsharded, whole, whole_shape

ParameterState = Mapping[str, Tensor]


@dataclass(frozen=True)
class Learner:
    """Policy and critic, plain, under DDP or under FSDP.

    Attributes:
        policy: to be called for its logits.
        critic: to be called for its values.
        optimizers: the policy's and the critic's, of one parameter group each, whose `lr` may be set.
        accelerator: what the processes speak through.
        max_grad_norm: limit of the gradient's norm, for policy and critic each; 0: none.
    """

    policy: nn.Module
    critic: nn.Module
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    accelerator: Accelerator
    max_grad_norm: float

    def generating(self) -> AbstractContextManager[nn.Module]:
        """Inside, the policy without its wrapper and whole in every process, for as many passes as each likes."""
        return unsharded(self.accelerator.unwrap_model(self.policy))

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Around forward and backward. DDP adds up gradients here, and sends them with the last one alone.

        FSDP sends them at once to the process that holds them.
        """
        with ExitStack() as stack:
            for model in () if is_last else (self.policy, self.critic):
                stack.enter_context(self.accelerator.no_sync(model))
            yield

    def backward(self, policy_loss: Tensor | None, value_loss: Tensor) -> None:
        """Adds the gradients of both losses; without a policy loss, of the critic's alone."""
        self.accelerator.backward(value_loss if policy_loss is None else policy_loss + value_loss)

    def step(self, *, critic_alone: bool = False) -> str | None:
        """One optimizer step, after which the gradients are 0.

        Args:
            critic_alone: the policy has no gradients, and neither it nor its optimizer changes.

        Returns:
            The network whose gradient is not finite, if one is; then it was not changed.
        """
        networks = [("policy", self.policy), ("critic", self.critic)][critic_alone:]
        for name, model in networks:
            norm = float(self.accelerator.clip_grad_norm_(model.parameters(), self.max_grad_norm or math.inf))
            if not math.isfinite(norm):
                return name
        for optimizer in self.optimizers[critic_alone:]:
            optimizer.step()
            optimizer.zero_grad()
        return None

    @property
    def shapes(self) -> list[torch.Size]:
        """Of each trained parameter, the policy's first."""
        return [whole_shape(parameter) for model in (self.policy, self.critic) for parameter in trained(model)]

    def optimizer_state(self) -> Iterator[dict[str, Tensor]]:
        """What the optimizers keep of each trained parameter, whole, in the order of `shapes`.

        All processes have to ask for it.
        """
        for optimizer, parameter in self._trained():
            kept = optimizer.state.get(parameter, {})
            yield {key: whole(tensor).contiguous() for key, tensor in kept.items()}

    def restore_optimizer(self, state: Mapping[int, ParameterState]) -> None:
        """Gives the optimizers what `optimizer_state` gave, by the parameter's number."""
        for number, (optimizer, parameter) in enumerate(self._trained()):
            optimizer.state[parameter] = {
                key: shard_like(tensor, parameter).to(parameter.device) if tensor.ndim else tensor
                for key, tensor in state.get(number, {}).items()
            }

    def _trained(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
        for optimizer, model in zip(self.optimizers, (self.policy, self.critic), strict=True):
            for parameter in trained(model):
                yield optimizer, parameter


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an update changes, in the network's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
