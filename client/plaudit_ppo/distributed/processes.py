"""The processes of a run: which kinds there may be, and their end.

Each process samples and scores rollouts of its own; statistics are over all, and so every process decides the same.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError

_SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU")
_INSTEAD = {
    "ACCELERATE_USE_FSDP": 'set sharding = "fsdp" in the configuration of the run',
    "ACCELERATE_USE_DEEPSPEED": 'set sharding = "deepspeed" in the configuration of the run',
    "ACCELERATE_USE_MEGATRON_LM": "it is not supported",
}


def make_accelerator(config: PPOConfig) -> Accelerator:
    """The accelerator of a run; trackers that write files do so in the run's `trackers/`.

    Raises:
        ConfigError: what `accelerate launch` was told is a setting of ours or does not work here, or the rollouts
            cannot be shared out.
    """
    for flag, instead in _INSTEAD.items():
        if parse_flag_from_env(flag):
            raise ConfigError(f"{flag} is set: start the processes with --multi_gpu alone, and {instead}")
    accelerator = Accelerator(log_with=list(config.trackers) or None, project_dir=Path(config.output) / "trackers")
    check_processes(
        accelerator,
        rollouts=config.rollout_batch_size,
        minibatches=config.num_minibatches,
        group=config.samples_per_prompt,
    )
    return accelerator


def check_processes(accelerator: Accelerator, *, rollouts: int, minibatches: int, group: int = 1) -> None:
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
    if rollouts % (whole := accelerator.num_processes * group):
        raise ConfigError(
            f"rollout_batch_size = {rollouts} cannot be shared by {accelerator.num_processes} processes in groups of "
            f"{group} (samples_per_prompt); give a multiple of {whole}"
        )


def end_processes() -> None:
    """Ends what several processes speak over, once all is said; one process has nothing to end.

    Only when the networks are gone. DDP's reducer, if it is the last to hold a process group, waits for its threads
    with Python's lock in hand, and one of them may need that lock to free a tensor. Threads that outlive this are why a
    process then ends by `termination.leave`.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
