"""The passes of an iteration on networks whose tensors have no data, and the memory that they take.

The operators are those of the run: its own forward passes, losses and backward pass. Knows of one process alone.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.learner import trained
from plaudit_ppo.distributed.learner_setup import checkpoint_layers, prepare_logits, set_precision
from plaudit_ppo.models.critic import Critic, TrunkCritic
from plaudit_ppo.models.lora import add_lora
from plaudit_ppo.models.networks import disable_dropout, transformer_layers
from plaudit_ppo.planning.live_memory import LiveMemory
from plaudit_ppo.rollout.forward import completion_logprobs, completion_values, model_inputs, tempered
from plaudit_ppo.rollout.rollouts import Rollouts
from plaudit_ppo.training.experience import Experience
from plaudit_ppo.training.update import losses, token_sums

_CPU = torch.device("cpu")

Parts = Mapping[str, int]


@dataclass(frozen=True)
class NetworkSize:
    """Bytes of a network's parameters.

    Attributes:
        weights: all of them.
        trained: of those that an update changes.
        layers: of each layer.
        largest: of the largest single parameter that is trained.
    """

    weights: int
    trained: int
    layers: tuple[int, ...]
    largest: int


@dataclass(frozen=True)
class Simulation:
    """What the passes of an iteration take in one process, beside weights and optimizer.

    Attributes:
        policy: its size.
        critic: its size; 0 where it is a head on the policy's network.
        generate: peak of the local sampler; empty under engines.
        evaluate: peak of the passes without gradients.
        update: peak of forward and backward, with the gradients.
    """

    policy: NetworkSize
    critic: NetworkSize
    generate: Parts
    evaluate: Parts
    update: Parts


class _Unknown(TorchDispatchMode):
    """Answers whoever asks for a number of a tensor without data: 0, or False, as of a mask that hides something."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        return func(*args, **kwargs or {})


def simulate(
    config: PPOConfig, policy_config: PretrainedConfig, critic_config: PretrainedConfig, *, rollouts: int
) -> Simulation:
    """Runs the passes of an iteration, each at its largest: every prompt and completion as long as the settings allow.

    Args:
        config: of the run.
        policy_config: of the policy's network.
        critic_config: of the critic's, with one label.
        rollouts: of this process in an iteration.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor", UserWarning)
        with torch.device("meta"):
            policy, critic = _networks(config, policy_config, critic_config)
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_Unknown())
        _place(policy, critic)
        held = [*policy.parameters(), *policy.buffers(), *critic.parameters(), *critic.buffers()]
        vocabulary = policy_config.get_text_config().vocab_size
        at_once = min(config.rollout_micro_batch_size, rollouts)

        def follow() -> LiveMemory:
            return LiveMemory(held, vocabulary=vocabulary)

        return Simulation(
            policy=_size(policy),
            critic=_size(critic),
            generate=_generate(policy, config, at_once, follow()) if config.sampler == "local" else {},
            evaluate=_evaluate(policy, critic, config, at_once, follow()),
            update=_update(policy, critic, config, rollouts, follow()),
        )


def _networks(
    config: PPOConfig, policy_config: PretrainedConfig, critic_config: PretrainedConfig
) -> tuple[PreTrainedModel, Critic | TrunkCritic]:
    policy: PreTrainedModel = AutoModelForCausalLM.from_config(policy_config, dtype=torch.float32)
    critic: Critic | TrunkCritic
    if config.critic_trunk == "policy":
        critic = TrunkCritic(policy, head_init="zero", generator=torch.Generator())
    else:
        critic = Critic(AutoModelForSequenceClassification.from_config(critic_config, dtype=torch.float32))
    policy = add_lora(policy, config) if config.lora_rank else policy
    prepare_logits(policy, config, is_checked=False)
    networks: list[nn.Module] = [policy, critic]
    for network in networks:
        disable_dropout(network)
        set_precision(network, config.precision, _CPU)
        if config.gradient_checkpointing:
            checkpoint_layers(network)
    return policy, critic


def _place(*networks: nn.Module) -> None:
    """Puts networks of the meta device, on which attention is computed otherwise, on the CPU, still without data."""
    placed: dict[int, Tensor] = {}

    def place(tensor: Tensor) -> Tensor:
        if id(tensor) not in placed:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=_CPU)
            is_parameter = isinstance(tensor, nn.Parameter)
            placed[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return placed[id(tensor)]

    for network in networks:
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    tensors[name] = None if tensor is None else place(tensor)  # type: ignore[assignment]


def _size(network: nn.Module) -> NetworkSize:
    of_trained = [_bytes([parameter]) for parameter in trained(network)]
    return NetworkSize(
        weights=_bytes(network.parameters()),
        trained=sum(of_trained),
        layers=tuple(_bytes(layer.parameters()) for layer in transformer_layers(network)),
        largest=max(of_trained, default=0),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def _generate(policy: PreTrainedModel, config: PPOConfig, rows: int, memory: LiveMemory) -> Parts:
    """The first pass, over the prompts, or the last, with the longest cache: whichever takes more."""
    prompts = _rollouts(rows, config.max_prompt_tokens, 0)
    before_last = _rollouts(rows, config.max_prompt_tokens, config.max_completion_tokens - 1)
    last = torch.zeros(rows, 1, dtype=torch.long)
    mask = torch.ones(rows, config.max_prompt_tokens + config.max_completion_tokens, dtype=torch.long)
    with memory:
        cache = policy(**model_inputs(prompts), use_cache=True, logits_to_keep=1).past_key_values
        first = _with_cache(memory)
        cache = policy(**model_inputs(before_last), use_cache=True, logits_to_keep=1).past_key_values
        memory.restart()
        output = policy(
            input_ids=last,
            attention_mask=mask,
            position_ids=last,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        distribution = tempered(output.logits[:, -1], config.temperature).log_softmax(-1)
        torch.multinomial(distribution.exp(), 1)
        del output, distribution
    return max(first, _with_cache(memory), key=lambda parts: sum(parts.values()))


def _with_cache(memory: LiveMemory) -> Parts:
    """The peak, of which all activations that are left after a pass are the cache's."""
    cache = memory.now("activations")
    return {**memory.peak, "activations": memory.peak["activations"] - cache, "cache": cache}


@torch.no_grad()
def _evaluate(policy: nn.Module, critic: nn.Module, config: PPOConfig, rows: int, memory: LiveMemory) -> Parts:
    """As `evaluate_rollouts`; the reference takes what the policy takes."""
    rollouts = _rollouts(rows, config.max_prompt_tokens, config.max_completion_tokens)
    with memory:
        completion_logprobs(policy, rollouts, temperature=config.temperature, chunk_tokens=config.logits_chunk_tokens)
        completion_values(critic, rollouts)
    return memory.peak


def _update(policy: nn.Module, critic: nn.Module, config: PPOConfig, rollouts: int, memory: LiveMemory) -> Parts:
    """One minibatch: forward and backward of its first micro-batch and, where there is one, of the next."""
    minibatch = -(-rollouts // config.num_minibatches)
    rows = min(config.micro_batch_size, minibatch)
    batch = _experience(_rollouts(rows, config.max_prompt_tokens, config.max_completion_tokens))
    with memory, _gradients_told(policy, critic, memory):
        for _ in range(min(2, -(-minibatch // rows))):
            sums, _ratio = token_sums(policy, critic, batch, config)
            policy_loss, value_loss = losses(sums, config)
            (policy_loss + value_loss).backward()
            del sums, policy_loss, value_loss
    return memory.peak


@contextmanager
def _gradients_told(policy: nn.Module, critic: nn.Module, memory: LiveMemory) -> Iterator[None]:
    """Inside, what becomes a gradient is followed as one."""

    def tell(parameter: Tensor) -> None:
        memory.move([parameter.grad] if parameter.grad is not None else [], "gradients")

    hooks = [
        parameter.register_post_accumulate_grad_hook(tell) for model in (policy, critic) for parameter in trained(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rollouts(rows: int, prompt_tokens: int, completion_tokens: int) -> Rollouts:
    prompt, completion = (torch.zeros(rows, width, dtype=torch.long) for width in (prompt_tokens, completion_tokens))
    return Rollouts(
        prompt_ids=prompt,
        prompt_mask=torch.ones_like(prompt, dtype=torch.bool),
        completion_ids=completion,
        completion_mask=torch.ones_like(completion, dtype=torch.bool),
        finished=torch.zeros(rows, dtype=torch.bool),
        sampled_logprobs=torch.zeros_like(completion, dtype=torch.float32),
    )


def _experience(rollouts: Rollouts) -> Experience:
    of_tokens = torch.zeros_like(rollouts.sampled_logprobs)
    return Experience(
        rollouts=rollouts,
        scores=torch.zeros(len(rollouts)),
        old_logprobs=of_tokens,
        sampling_weights=of_tokens,
        sampling_clipped=torch.zeros_like(rollouts.completion_mask),
        ref_logprobs=of_tokens,
        old_values=of_tokens,
        kl=of_tokens,
        kl_penalty=of_tokens,
        rewards=of_tokens,
        advantages=of_tokens,
        returns=of_tokens,
    )
