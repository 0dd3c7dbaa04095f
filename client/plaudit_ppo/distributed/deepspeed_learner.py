"""DeepSpeed's ZeRO: optimizer state, gradients and weights of policy and critic spread over the processes.

Rajbhandari et al. 2020, arXiv 1910.02054. An engine for each network, because each has a gradient norm of its own.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plaudit_ppo.distributed.learner import Learner, ParameterState, trained
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.models.sharding import load_whole_state, shard_like, whole

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def zero_engine(
    model: nn.Module, settings: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> "DeepSpeedEngine":
    """A network in DeepSpeed's hands; without an optimizer it is not trained.

    Raises:
        ConfigError: DeepSpeed refuses its settings.
    """
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException
    from deepspeed.utils import set_log_level_from_string

    exact = {name: weights.detach() for name, weights in model.named_parameters() if weights.requires_grad}
    set_log_level_from_string("error")
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # its own calls
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(settings))
    except (DeepSpeedConfigError, ZeRORuntimeException, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"deepspeed_config: refused by DeepSpeed ({error})") from error
    engine.eval()
    if engine.bfloat16_enabled() and optimizer is not None:
        load_whole_state(model, exact, partial=True)  # DeepSpeed's masters are of weights that it has rounded
    return engine


def weightless_copy(policy: nn.Module) -> nn.Module:
    """A policy's structure, to generate with once it gets weights."""
    nothing = {
        id(parameter): nn.Parameter(parameter.new_empty(0), requires_grad=False) for parameter in policy.parameters()
    }
    return copy.deepcopy(policy, nothing)  # a memo: what is in it is not copied


@dataclass(frozen=True)
class ZeroLearner(Learner):
    """Policy and critic as engines of DeepSpeed, whose optimizers are ZeRO's and clip as they were told at the start.

    Attributes:
        sampler: what generates where the policy's weights are spread (stage 3), from `weightless_copy`.
    """

    policy: "DeepSpeedEngine"
    critic: "DeepSpeedEngine"
    sampler: nn.Module | None

    @contextmanager
    def generating(self) -> Iterator[nn.Module]:
        """Inside, the policy whole in every process, for as many passes as each likes.

        Under stage 3 in a copy, since a pass through the policy itself is one that all processes have to make.
        """
        if self.sampler is None:
            yield self.policy.module
            return
        try:
            for own, spread in zip(self.sampler.parameters(), self.policy.module.parameters(), strict=True):
                own.data = whole(spread).to(spread.dtype)
            yield self.sampler
        finally:
            for own in self.sampler.parameters():
                own.data = own.data.new_empty(0)

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Around forward and backward; stages 2 and 3 send gradients at once to the process that holds them."""
        for engine in (self.policy, self.critic):
            engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, policy_loss: Tensor | None, value_loss: Tensor) -> None:
        """Adds the gradients of both losses, which are of separate networks."""
        if policy_loss is not None:
            self.policy.backward(policy_loss)
        self.critic.backward(value_loss)

    def step(self, *, critic_alone: bool = False) -> str | None:
        """As `Learner.step`, but that the policy has changed where the critic's gradient is not finite."""
        for name, engine in [("policy", self.policy), ("critic", self.critic)][critic_alone:]:
            engine.step()
            if not engine.was_step_applied():
                return name
        return None

    def optimizer_state(self) -> Iterator[dict[str, Tensor]]:
        """As `Learner.optimizer_state`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        for engine, parameter in self._trained_by_engine():
            kept: ParameterState = next(iter(engine.optimizer.optimizer.state.values()), {})  # of a flat part
            yield {
                key: safe_get_full_optimizer_state(parameter, key) if flat.ndim else flat.clone()
                for key, flat in kept.items()
            }

    def restore_optimizer(self, state: Mapping[int, ParameterState]) -> None:
        """As `Learner.restore_optimizer`."""
        numbered = list(enumerate(self._trained_by_engine()))
        for engine in (self.policy, self.critic):  # the policy's has none while the critic warms up
            kept = [state[number] for number, (owner, _) in numbered if owner is engine and number in state]
            if kept:
                _make_room(engine.optimizer, kept[0])
        for number, (engine, parameter) in numbered:
            _restore(parameter, state.get(number, {}), engine)

    def _trained_by_engine(self) -> "Iterator[tuple[DeepSpeedEngine, nn.Parameter]]":
        for engine in (self.policy, self.critic):
            for parameter in trained(engine):
                yield engine, parameter


def _make_room(optimizer: Any, like: ParameterState) -> None:
    """Gives an optimizer of ZeRO the state that it would otherwise make in its first step."""
    spreads_weights = hasattr(optimizer, "fp32_partitioned_groups_flat")
    flats = optimizer.fp32_partitioned_groups_flat if spreads_weights else optimizer.single_partition_of_fp32_groups
    for flat in flats:
        optimizer.optimizer.state[flat] = {
            key: torch.zeros_like(flat) if tensor.ndim else tensor.clone() for key, tensor in like.items()
        }
    if not spreads_weights:
        optimizer._lazy_init_hp_params_optimizer_state()


def _restore(parameter: Any, kept: ParameterState, engine: "DeepSpeedEngine") -> None:
    """Writes this process's part of a parameter's state."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    is_spread = hasattr(parameter, "ds_id")
    write = safe_set_local_optimizer_state if is_spread else safe_set_full_optimizer_state
    for key, tensor in kept.items():
        if tensor.ndim:
            write(parameter, shard_like(tensor.to(engine.device), parameter), key)
