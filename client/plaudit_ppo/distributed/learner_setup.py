"""Networks as they are trained: in which precision, and how they are spread over the processes."""

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import largest
from plaudit_ppo.distributed.deepspeed_learner import ZeroLearner, weightless_copy, zero_engine
from plaudit_ppo.distributed.deepspeed_settings import check_one_precision, is_stage_3, zero_settings
from plaudit_ppo.distributed.learner import Learner, trained
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.models.critic import Critic, TrunkCritic
from plaudit_ppo.models.lora import check_adapter, is_lora
from plaudit_ppo.models.networks import disable_dropout, transformer_layers
from plaudit_ppo.models.sharding import shard
from plaudit_ppo.rollout.chunks import answer_in_chunks


def make_learner(
    policy: PreTrainedModel, critic: Critic | TrunkCritic, config: PPOConfig, accelerator: Accelerator
) -> Learner:
    """Policy and critic ready to be trained.

    Raises:
        ConfigError: two settings do not go together, or a network does not tell what its layers are.
    """
    sharding = _sharding(config, accelerator)
    if sharding != "none" and isinstance(critic, TrunkCritic):
        raise ConfigError(
            f'critic_trunk = "policy" cannot be combined with sharding = "{sharding}"; set critic_trunk = '
            '"separate" or sharding = "none"'
        )
    networks: list[nn.Module] = [policy, critic]
    if is_lora(policy):
        check_adapter(policy)
    if sharding == "deepspeed":
        check_one_precision(config)
    for network in networks:
        disable_dropout(network)
    settings = zero_settings(config) if sharding == "deepspeed" else None
    sampler = _sampler(policy, config, accelerator.device) if settings and is_stage_3(settings) else None
    prepare_logits(policy, config, agree=_agreement(config, accelerator))
    for network in networks:
        set_precision(network, config.precision, accelerator.device)
        if config.gradient_checkpointing:
            checkpoint_layers(network)
    if sharding == "fsdp":
        for network in networks:
            _shard(network, accelerator, config.gathered_precision)
    of_policy, of_critic = (make_optimizer(network, config) for network in networks)
    if settings:
        engines = zero_engine(policy, settings, of_policy), zero_engine(critic, settings, of_critic)
        return ZeroLearner(
            *engines, (engines[0].optimizer, engines[1].optimizer), accelerator, config.max_grad_norm, sampler
        )
    if sharding == "fsdp":
        return Learner(policy, critic, (of_policy, of_critic), accelerator, config.max_grad_norm)
    policy, critic, of_policy, of_critic = accelerator.prepare(policy, critic, of_policy, of_critic)
    return Learner(policy, critic, (of_policy, of_critic), accelerator, config.max_grad_norm)


def prepare_reference(reference: PreTrainedModel, config: PPOConfig, accelerator: Accelerator) -> PreTrainedModel:
    """The reference, computing as the policy does, with no gradients."""
    prepare_logits(reference, config, agree=_agreement(config, accelerator))
    set_precision(disable_dropout(reference).requires_grad_(False), config.precision, accelerator.device)
    sharding = _sharding(config, accelerator)
    if sharding == "fsdp":
        _shard(reference, accelerator, "float32")  # frozen: gathered as it is kept
        return reference
    if sharding == "deepspeed" and is_stage_3(settings := zero_settings(config)):
        return zero_engine(reference, settings)
    moved: PreTrainedModel = reference.to(accelerator.device)
    return moved


def _sharding(config: PPOConfig, accelerator: Accelerator) -> str:
    """The setting; one process has nobody to share with."""
    return config.sharding if accelerator.num_processes > 1 else "none"


def _agreement(config: PPOConfig, accelerator: Accelerator) -> Callable[[int], int]:
    """From this process's number of passes through the head to that of all: ZeRO's stage 3 gathers for each pass."""
    if _sharding(config, accelerator) == "deepspeed" and is_stage_3(zero_settings(config)):
        return lambda count: int(largest(accelerator, count))
    return lambda count: count


def _shard(network: nn.Module, accelerator: Accelerator, gathered: str) -> None:
    layers = transformer_layers(network)
    processes = accelerator.num_processes
    shard(network, layers, device=accelerator.device, processes=processes, gathered=gathered)


def _sampler(policy: PreTrainedModel, config: PPOConfig, device: torch.device) -> nn.Module:
    """What generates where ZeRO will spread the policy's weights; made before anything is done to the policy."""
    sampler = weightless_copy(policy).to(device)
    set_precision(sampler, config.precision, device)
    return sampler


def make_optimizer(model: nn.Module, config: PPOConfig) -> torch.optim.AdamW:
    """AdamW over what is trained of a network; `set_learning_rates` gives it its rate."""
    return torch.optim.AdamW(trained(model), lr=0.0, eps=config.adam_epsilon, weight_decay=config.weight_decay)


def prepare_logits(
    model: PreTrainedModel,
    config: PPOConfig,
    *,
    is_checked: bool = True,
    agree: Callable[[int], int] = lambda count: count,
) -> None:
    """Before anything else is done to a causal LM: whether it may be asked for the logits of a chunk at a time.

    Args:
        model: changed in place.
        config: for logits_chunk_tokens.
        is_checked: whether it is tried at once.
        agree: as of `answer_in_chunks`.

    Raises:
        ConfigError: it is not built that way.
    """
    if config.logits_chunk_tokens:
        causal_lm = model.get_base_model() if is_lora(model) else model
        answer_in_chunks(causal_lm, is_checked=is_checked, agree=agree)


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
            f"gradient_checkpointing: {type(model).__name__} does not name its layers (_no_split_modules); set "
            "gradient_checkpointing = false"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
