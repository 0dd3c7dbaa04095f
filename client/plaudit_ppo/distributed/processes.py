"""What the processes of a distributed run tell each other; with one process, everything stays as it is.

Each process samples and scores rollouts of its own; statistics are over all, and so every process decides the same.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor, tensor

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.runs.trackers import check_trackers
from plaudit_ppo.scoring.pool import ScoredBatch, join
from plaudit_ppo.training.experience import Experience

_SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU")
_INSTEAD = {
    "ACCELERATE_USE_FSDP": 'set sharding = "fsdp" in the configuration of the run',
    "ACCELERATE_USE_DEEPSPEED": 'set sharding = "deepspeed" in the configuration of the run',
    "ACCELERATE_USE_MEGATRON_LM": "it is not supported",
}


def make_accelerator(config: PPOConfig) -> Accelerator:
    """The accelerator of a run; trackers that write files do so in the run's `trackers/`.

    Raises:
        ConfigError: what `accelerate launch` was told is a setting of ours or does not work here, a tracker is
            missing, or the rollouts cannot be shared out.
    """
    for flag, instead in _INSTEAD.items():
        if parse_flag_from_env(flag):
            raise ConfigError(f"{flag} is set: start the processes with --multi_gpu alone, and {instead}")
    check_trackers(config.trackers)
    accelerator = Accelerator(log_with=list(config.trackers) or None, project_dir=Path(config.output) / "trackers")
    check_processes(accelerator, rollouts=config.rollout_batch_size, minibatches=config.num_minibatches)
    return accelerator


def check_processes(accelerator: Accelerator, *, rollouts: int, minibatches: int) -> None:
    """Refuses what would not work, before anything is computed.

    Raises:
        ConfigError: the processes are of a kind that is not supported, or the rollouts cannot be shared out.
    """
    kind = accelerator.distributed_type.name
    if kind not in _SUPPORTED:
        raise ConfigError(f"distributed type {kind}; has to be one of {', '.join(_SUPPORTED)}")
    if accelerator.mixed_precision != "no":
        raise ConfigError(
            f"mixed precision {accelerator.mixed_precision} of accelerate; start the processes with "
            '--mixed_precision no, and set precision = "bfloat16" in the configuration of the run'
        )
    if rollouts % accelerator.num_processes or rollouts // accelerator.num_processes < minibatches:
        raise ConfigError(
            f"rollout_batch_size = {rollouts} cannot be shared by {accelerator.num_processes} processes with at least "
            f"{minibatches} rollouts each (num_minibatches); give a multiple"
        )


def end_processes() -> None:
    """Ends what several processes speak over, once all is said; one process has nothing to end.

    Only when the networks are gone. DDP's reducer, if it is the last to hold a process group, waits for its threads
    with Python's lock in hand, and one of them may need that lock to free a tensor. Without an end, such a thread can
    meet an interpreter that is no more, and abort the process after a run that went well.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def largest(accelerator: Accelerator, value: float) -> float:
    """The largest value of all processes; NaN if one of them has NaN."""
    return float(accelerator.gather(tensor([value], device=accelerator.device)).max())


def share(accelerator: Accelerator, whole: Sequence[Any]) -> Sequence[Any]:
    """This process's part of a sequence that can be shared out evenly."""
    size = len(whole) // accelerator.num_processes
    return whole[accelerator.process_index * size :][:size]


def gather_scored(accelerator: Accelerator, scored: ScoredBatch) -> ScoredBatch:
    """The scores of all processes, in the order of `gather_experience`; the longest wait, and all calls added up."""
    if accelerator.num_processes == 1:
        return scored
    batches = gather_object([scored])
    return join(batches, wait_s=max(batch.wait_s for batch in batches))


def gather_sum(accelerator: Accelerator, value: int | None) -> int | None:
    """The sum over all processes; None if one of them has none."""
    values = [value] if accelerator.num_processes == 1 else gather_object([value])
    return None if None in values else sum(value or 0 for value in values)


def gather_experience(accelerator: Accelerator, experience: Experience) -> Experience:
    """The experience of all processes, for statistics."""
    if accelerator.num_processes == 1:
        return experience

    def whole(part: Tensor, *, left: bool = False) -> Tensor:
        if part.ndim > 1:  # padded to one width: completions right, prompts left
            part = accelerator.pad_across_processes(part, dim=1, pad_first=left).to(part.dtype)
        gathered: Tensor = accelerator.gather(part)
        return gathered

    rollouts = experience.rollouts
    names = [field.name for field in fields(rollouts)]
    rollouts = replace(
        rollouts, **{name: whole(getattr(rollouts, name), left=name.startswith("prompt")) for name in names}
    )
    names = [field.name for field in fields(experience) if field.name != "rollouts"]
    return replace(experience, rollouts=rollouts, **{name: whole(getattr(experience, name)) for name in names})
