"""What a run trains: policy, critic and optimizer, in which precision, and how they are spread over the processes."""

from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.models import Critic, TrunkCritic, disable_dropout, transformer_layers
from plaudit_ppo.optimization import make_optimizer
from plaudit_ppo.sharding import shard


@dataclass(frozen=True)
class Learner:
    """What an update changes: the policy, the critic, and the optimizer's state."""

    policy: nn.Module
    critic: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator


def make_learner(
    policy: PreTrainedModel, critic: Critic | TrunkCritic, config: PPOConfig, accelerator: Accelerator
) -> Learner:
    """Policy and critic ready to be trained.

    Raises:
        ConfigError: two settings do not go together, or a network does not tell what its layers are.
    """
    networks: list[nn.Module] = [policy, critic]
    for network in networks:
        disable_dropout(network)
        set_precision(network, config.precision, accelerator.device)
    if config.gradient_checkpointing:
        checkpoint_layers(policy)
        checkpoint_layers(critic)
    if is_sharded(config, accelerator):
        if isinstance(critic, TrunkCritic):
            raise ConfigError('critic_trunk = "policy" does not go with sharding = "fsdp"; set one of them back')
        for network in networks:
            _shard(network, accelerator)
        return Learner(policy, critic, make_optimizer(policy, critic, config), accelerator)
    optimizer = make_optimizer(policy, critic, config)
    policy, critic, optimizer = accelerator.prepare(policy, critic, optimizer)
    return Learner(policy, critic, optimizer, accelerator)


def prepare_reference(reference: PreTrainedModel, config: PPOConfig, accelerator: Accelerator) -> PreTrainedModel:
    """The reference, computing as the policy does, with no gradients."""
    set_precision(disable_dropout(reference).requires_grad_(False), config.precision, accelerator.device)
    if is_sharded(config, accelerator):
        _shard(reference, accelerator)
        return reference
    moved: PreTrainedModel = reference.to(accelerator.device)
    return moved


def is_sharded(config: PPOConfig, accelerator: Accelerator) -> bool:
    """Whether FSDP is on; one process has nobody to share with."""
    return config.sharding == "fsdp" and accelerator.num_processes > 1


def _shard(network: nn.Module, accelerator: Accelerator) -> None:
    layers = transformer_layers(network)
    shard(network, layers, device=accelerator.device, processes=accelerator.num_processes)


def set_precision(model: nn.Module, precision: str, device: torch.device) -> None:
    """What the forward pass computes in: "float32", or "bfloat16" by autocast, which leaves the weights in float32.

    AdamW's steps are too small for weights in bfloat16: 3e-6 added to 0.01 is lost in its 8 bits.
    """
    if precision == "bfloat16":
        model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)


def checkpoint_layers(model: nn.Module) -> None:
    """Keeps no activations inside a layer; the backward pass computes them again. Costs time, changes no number.

    Chen et al. 2016, arXiv 1604.06174. Not the one of transformers, which works in training mode alone, where a model
    may drop out. A pass with gradients must not use a key-value cache, which the second computation would find filled.

    Raises:
        ConfigError: the model does not tell what its layers are.
    """
    layers = transformer_layers(model)
    if not layers and not isinstance(model, TrunkCritic):
        raise ConfigError(
            f"gradient_checkpointing: {type(model).__name__} does not tell what its layers are (_no_split_modules); "
            "set it to false"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
