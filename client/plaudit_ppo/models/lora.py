"""LoRA: a policy whose adapter alone is trained, and the reference as the same network without its adapter."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import CheckpointError, ConfigError
from plaudit_ppo.models.networks import save_network, stored_frozen
from plaudit_ppo.models.sharding import load_whole_state
from plaudit_ppo.rollout.seeding import seeded_generator

_WEIGHTS = "adapter_model.safetensors"
_PREFIX, _ADAPTER = "base_model.model.", "default"  # PEFT's names of the network below, and of an adapter
_TRAINED = re.compile(rf"\.lora_[AB]\.{_ADAPTER}\.weight$")


def is_lora(policy: nn.Module) -> bool:
    """Whether a policy is one of PEFT's."""
    return any(kind.__module__.startswith("peft.") for kind in type(policy).__mro__)


def add_lora(policy: PreTrainedModel, config: PPOConfig) -> PreTrainedModel:
    """The policy with a new adapter in every linear layer and expert but the head; only the adapter is trained.

    W + alpha / r * B A, B = 0 at first, so that the policy begins as the reference. Hu et al. 2021, arXiv 2106.09685.
    No dropout: all passes have to see the same policy.

    Args:
        policy: a causal LM.
        config: gives lora_rank, lora_alpha, the seed, and the data type of all other weights (frozen_precision).
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT 0.21 asks
        # Of fused parameters of experts, whose rank it has set itself; it looks among modules alone.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        torch.manual_seed(seeded_generator(torch.device("cpu"), config.seed, "lora").initial_seed())
        adapted: PreTrainedModel = get_peft_model(policy, settings)
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            parameter.data = stored_frozen(policy, parameter, name, config.frozen_precision)
    return adapted


def check_adapter(policy: nn.Module) -> None:
    """Refuses a PEFT policy that trains anything but LoRA's two matrices: it could be neither merged nor resumed.

    Raises:
        ConfigError: names what it trains.
    """
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and not _TRAINED.search(name):
            raise ConfigError(
                f"policy: its adapter trains {name}; only LoRA's own matrices are supported (no DoRA, no biases, no "
                "modules_to_save, one adapter); make it by add_lora"
            )


class AdapterOff(nn.Module):
    """The reference of a LoRA policy: its own network without the adapter. Holds no weights.

    Args:
        policy: from `add_lora`; not registered as a part, so that nothing done to the reference reaches it.
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self._policy = (policy,)

    def forward(self, **inputs: Any) -> Any:
        """What the policy's forward returns, without the adapter."""
        (policy,) = self._policy
        with policy.disable_adapter():  # type: ignore[operator]
            return policy(**inputs)


def save_adapter(policy: PreTrainedModel, directory: Path, state: Mapping[str, Tensor]) -> None:
    """Writes the adapter alone, as PEFT reads it.

    Args:
        policy: from `add_lora`.
        directory: made if missing.
        state: the policy's whole state.
    """
    policy.save_pretrained(directory, state_dict=dict(state), save_embedding_layers=False)


def save_merged(policy: PreTrainedModel, directory: Path, state: Mapping[str, Tensor]) -> None:
    """Writes the policy with the adapter merged into its weights, as transformers reads it without PEFT; in float32.

    Args:
        policy: from `add_lora`, which stays as it is.
        directory: made if missing.
        state: the policy's whole state.
    """
    base: PreTrainedModel = policy.get_base_model()
    merged = {name: tensor.float() for name, tensor in _merged(base, state).items()}
    save_network(base, directory, merged)


def _merged(base: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + alpha / r * B A where there is an adapter, under the names that the network has without PEFT.

    Of the state, not by PEFT's own merge: the processes of a run may hold a shard of the weights each.
    """
    from peft.tuners.lora import LoraLayer

    state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
    merged = {_own_name(name): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (state[f"{name}.lora_{side}.{_ADAPTER}.weight"] for side in "AB")
            # Of a fused parameter, such as the experts of a layer, PEFT wraps the module once for each of them.
            parameter = getattr(layer, "parameter_name", "weight")
            adapted = _own_name(f"{name}.{parameter}")
            merged[adapted] = merged[adapted] + _delta(layer, a, b)
    return merged


def _own_name(name: str) -> str:
    """The name that a parameter has without PEFT."""
    return name.replace(".base_layer", "")


def _delta(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    """What a layer's adapter adds to its weight: alpha / r * B A, for each expert where there are several."""
    experts = getattr(layer, "num_experts", 1)
    if experts == 1:
        delta: Tensor = (b @ a) * layer.scaling[_ADAPTER]
        return delta.T if layer.fan_in_fan_out else delta
    of_experts = a.reshape(experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, experts)
    is_out_first = getattr(layer, "_did_swap_in_out_features", False)  # (experts, out, in), as PEFT found them
    order = "eri,ore->eoi" if is_out_first else "eri,ore->eio"
    delta = torch.einsum(order, *of_experts)
    return delta * float(layer.scaling[_ADAPTER])


def restore_adapter(policy: PreTrainedModel, directory: Path) -> None:
    """Gives the policy's adapter the weights that `save_adapter` wrote.

    Raises:
        CheckpointError: there are none, or they are of another adapter.
    """
    own = {name.replace(f".{_ADAPTER}.", "."): name for name in policy.state_dict() if ".lora_" in name}
    try:
        saved = load_file(directory / _WEIGHTS)
        if saved.keys() != own.keys():
            raise RuntimeError("other layers")
        load_whole_state(policy, {own[name]: tensor for name, tensor in saved.items()}, partial=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory}: not the adapter of this policy; policy and lora_rank have to be the same as at the "
            "start of the run"
        ) from error
