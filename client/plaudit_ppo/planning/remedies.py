"""What would make a run take less memory: other settings, and how much each of them saves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.deepspeed_settings import check_one_precision
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.planning.plan import NetworkConfigs, Plan, make_plan

_MAX_CHUNK_TOKENS = 512
_LORA_RANK = 16


@dataclass(frozen=True)
class Remedy:
    """Settings that lower the peak.

    Attributes:
        settings: by name, with the values to give them.
        plan: with them.
    """

    settings: Mapping[str, Any]
    plan: Plan


def remedies(config: PPOConfig, networks: NetworkConfigs, plan: Plan) -> list[Remedy]:
    """Each setting by itself that lowers the peak, those that save the most first."""
    found = [_planned(config, networks, plan, settings) for settings in _candidates(config, plan.processes)]
    return sorted((remedy for remedy in found if remedy and remedy.plan.peak < plan.peak), key=lambda r: r.plan.peak)


def fit(config: PPOConfig, networks: NetworkConfigs, plan: Plan, limit: int) -> Remedy | None:
    """Settings with which a process takes at most `limit` bytes; None: none of these do.

    One after the other, those first that leave the numbers of a run as they are.
    """
    chosen = Remedy({}, plan)
    for settings in _candidates(config, plan.processes):
        if chosen.plan.peak <= limit:
            break
        together = _planned(config, networks, plan, {**chosen.settings, **settings})
        if together and together.plan.peak < chosen.plan.peak:
            chosen = together
    return chosen if chosen.plan.peak <= limit else None


def _planned(config: PPOConfig, networks: NetworkConfigs, plan: Plan, settings: Mapping[str, Any]) -> Remedy | None:
    try:
        other = replace(config, **settings)
        if other.critic_trunk == "policy" and other.sharding != "none" and plan.processes > 1:
            return None  # a learner refuses a head on a network that is spread
        if other.sharding == "deepspeed" and plan.processes > 1:
            check_one_precision(other)
        return Remedy(settings, make_plan(other, networks, processes=plan.processes, device=plan.device))
    except ConfigError:  # two settings that do not go together, or a network that cannot take one
        return None


def _candidates(config: PPOConfig, processes: int) -> Sequence[Mapping[str, Any]]:
    """Settings to try: first those that leave the numbers as they are, then those that change what is trained."""
    rows = min(config.micro_batch_size, -(-config.rollout_batch_size // processes // config.num_minibatches))
    chunk = min(_MAX_CHUNK_TOKENS, rows * config.max_completion_tokens // 4)
    halves = config.precision == "bfloat16" or not config.lora_rank
    wanted: list[tuple[str, Any, bool]] = [
        ("gradient_checkpointing", True, True),
        ("logits_chunk_tokens", chunk, chunk > 0 and not config.logits_chunk_tokens),
        ("micro_batch_size", 1, True),
        ("rollout_micro_batch_size", config.samples_per_prompt, True),
        ("sharding", "fsdp", processes > 1 and config.sharding == "none"),
        ("frozen_precision", "bfloat16", halves),
        ("precision", "bfloat16", True),
        ("gathered_precision", "bfloat16", config.precision == "bfloat16" and processes > 1),
        ("critic_trunk", "policy", config.critic is None),
        ("lora_rank", _LORA_RANK, not config.lora_rank),
    ]
    found = [{name: value} for name, value, fits in wanted if fits and getattr(config, name) != value]
    of_deepspeed = ({"frozen_precision": "bfloat16"}, {"gathered_precision": "bfloat16"})
    if config.sharding == "deepspeed" and all(settings in found for settings in of_deepspeed):
        found.append({**of_deepspeed[0], **of_deepspeed[1]})  # each by itself is refused with stage 3 or LoRA
    return found
