"""DeepSpeed's ZeRO: optimizer state, gradients and weights of policy and critic spread over the processes.

Rajbhandari et al. 2020, arXiv 1910.02054. An engine for each network, because each has a gradient norm of its own.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_deepspeed_available
from torch import Tensor, nn

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.learner import Learner, ParameterState, trained
from plaudit_ppo.sharding import whole

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_DEFAULT = {"zero_optimization": {"stage": 2}}
_INSTEAD = {
    "optimizer": "learning_rate, adam_epsilon and weight_decay",
    "scheduler": "lr_schedule and warmup_iterations",
    "gradient_clipping": "max_grad_norm",
    "gradient_accumulation_steps": "num_minibatches and micro_batch_size",
    "train_batch_size": "rollout_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "bf16": "precision",
    "fp16": "precision",
    "torch_autocast": "precision",
}


def zero_settings(config: PPOConfig) -> dict[str, Any]:
    """What DeepSpeed is told: the file `deepspeed_config`, or ZeRO's stage 2, and what the run's settings say.

    Raises:
        ConfigError: the file cannot be read, sets what a setting of the run does, or is of no ZeRO stage.
    """
    file = config.deepspeed_config
    given: dict[str, Any] = _DEFAULT if file is None else _read(file)
    for name, instead in _INSTEAD.items():
        if name in given:
            raise ConfigError(f'deepspeed_config: {file} sets "{name}"; leave it out, and set {instead} of the run')
    zero = given.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        raise ConfigError(f"deepspeed_config: {file}: zero_optimization.stage = {stage}; has to be 1, 2 or 3")
    if auto := [name for name, value in zero.items() if value == "auto"]:
        raise ConfigError(
            f'deepspeed_config: {file}: zero_optimization.{auto[0]} = "auto"; give a number or leave it out'
        )
    return {
        "steps_per_print": None,
        "zero_force_ds_cpu_optimizer": False,
        **given,
        "train_micro_batch_size_per_gpu": 1,  # demanded, and used for DeepSpeed's own statistics alone
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
    }


def is_stage_3(settings: Mapping[str, Any]) -> bool:
    """Whether weights are spread too."""
    return bool(settings["zero_optimization"]["stage"] == 3)


def _read(file: str) -> dict[str, Any]:
    try:
        given = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"deepspeed_config: {file} cannot be read ({error.strerror}); give a JSON file") from error
    except ValueError as error:
        raise ConfigError(f"deepspeed_config: {file} is not JSON ({error})") from error
    if not isinstance(given, dict):
        raise ConfigError(f"deepspeed_config: {file} holds no JSON object; give DeepSpeed's configuration")
    return given


def zero_engine(
    model: nn.Module, settings: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> "DeepSpeedEngine":
    """A network in DeepSpeed's hands; without an optimizer it is not trained.

    Raises:
        ConfigError: DeepSpeed is not installed, or refuses its settings.
    """
    if not is_deepspeed_available():
        raise ConfigError('sharding = "deepspeed" needs the package deepspeed; pip install "plaudit[deepspeed]"')
    import deepspeed
    from deepspeed.utils import set_log_level_from_string

    set_log_level_from_string("error")
    try:
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(settings))
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"deepspeed_config: refused by DeepSpeed ({error})") from error
    engine.eval()
    return engine


@dataclass(frozen=True)
class ZeroLearner(Learner):
    """Policy and critic as engines of DeepSpeed, whose optimizers are ZeRO's.

    Attributes:
        sampler: the policy without weights, which gets them to generate where the policy's own are spread (stage 3).
    """

    policy: "DeepSpeedEngine"
    critic: "DeepSpeedEngine"
    sampler: nn.Module | None

    @property
    def _engines(self) -> "tuple[DeepSpeedEngine, DeepSpeedEngine]":
        return self.policy, self.critic

    @contextmanager
    def generating(self) -> Iterator[nn.Module]:
        """Inside, the policy whole in every process, for as many passes as each likes.

        Under stage 3 in a copy, since a pass through the policy itself is one that all processes have to make.
        """
        if self.sampler is None:
            yield self.policy.module
            return
        for own, spread in zip(self.sampler.parameters(), self.policy.module.parameters(), strict=True):
            own.data = whole(spread)
        try:
            yield self.sampler
        finally:
            empty(self.sampler)

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Around forward and backward; stages 2 and 3 send gradients at once to the process that holds them."""
        for engine in self._engines:
            engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, policy_loss: Tensor, value_loss: Tensor) -> None:
        """Adds the gradients of both losses, which are of separate networks."""
        self.policy.backward(policy_loss)
        self.critic.backward(value_loss)

    def step(self, *, max_norm: float) -> str | None:
        """One optimizer step, as `Learner.step`, but that the policy has changed where the critic's is not finite.

        Args:
            max_norm: what the engines were told at their start.
        """
        for name, engine in zip(("policy", "critic"), self._engines, strict=True):
            assert engine.gradient_clipping() == max_norm
            engine.step()
            if not engine.was_step_applied():
                return name
        return None

    def optimizer_state(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """As `Learner.optimizer_state`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        numbers = count()
        for engine in self._engines:
            kept: ParameterState = next(iter(engine.optimizer.optimizer.state.values()), {})  # of a flat part
            for parameter in trained(engine):
                whole_state = {
                    key: safe_get_full_optimizer_state(parameter, key) if flat.ndim else flat.clone()
                    for key, flat in kept.items()
                }
                yield next(numbers), whole_state

    def restore_optimizer(self, state: Mapping[int, ParameterState]) -> None:
        """As `Learner.restore_optimizer`, after the networks have their weights, of which ZeRO keeps a second copy."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        numbers = count()
        for engine in self._engines:
            parameters = [(parameter, state.get(next(numbers), {})) for parameter in trained(engine)]
            _make_state(engine.optimizer, parameters[0][1])
            for parameter, kept in parameters:
                safe_set_full_fp32_param(parameter, whole(parameter).detach())
                for key, tensor in kept.items():
                    if tensor.ndim:
                        safe_set_full_optimizer_state(parameter, tensor.to(engine.device), key)


def _make_state(optimizer: Any, like: ParameterState) -> None:
    """Makes room for the state of a restored optimizer, which ZeRO's would otherwise make in its first step."""
    if not like:
        return
    is_stage_3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    flats = optimizer.fp32_partitioned_groups_flat if is_stage_3 else optimizer.single_partition_of_fp32_groups
    for flat in flats:
        optimizer.optimizer.state[flat] = {
            key: torch.zeros_like(flat) if tensor.ndim else tensor.clone() for key, tensor in like.items()
        }
    if not is_stage_3:
        optimizer._lazy_init_hp_params_optimizer_state()


def empty(model: nn.Module) -> nn.Module:
    """The network, its weights freed."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    return model
