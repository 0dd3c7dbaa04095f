"""What DeepSpeed is told: a file of its own, and what the settings of the run say. Knows nothing of torch."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError

_DEFAULT = {"zero_optimization": {"stage": 2}}
# Losses are computed in float32, and so gradients are added up, over micro-batches and over processes.
_MIXED = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "communication_data_type": "fp32",
}
_TAKEN = ("zero_optimization", "aio", "comms_logger", "flops_profiler", "memory_breakdown", "wall_clock_breakdown")
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
    "data_types": "gathered_precision",
    "communication_data_type": "gathered_precision",
}


def check_zero(config: PPOConfig) -> None:
    """Refuses at once what would only be refused when the networks are loaded.

    Raises:
        ConfigError: as `zero_settings`; or DeepSpeed is needed and not installed.
    """
    if config.sharding == "deepspeed":
        zero_settings(config)
        if find_spec("deepspeed") is None:
            raise ConfigError('sharding = "deepspeed" needs the package deepspeed; pip install "plaudit[deepspeed]"')


def zero_settings(config: PPOConfig) -> dict[str, Any]:
    """The configuration for DeepSpeed: where things lie is the file's to say, or ZeRO's stage 2; the rest is ours.

    Raises:
        ConfigError: the file cannot be read, or sets what is not its to say.
    """
    file = config.deepspeed_config
    given = _DEFAULT if file is None else _read(file)
    for name in given:
        if name not in _TAKEN:
            instead = (
                f"and set {_INSTEAD[name]} of the run" if name in _INSTEAD else f"only {', '.join(_TAKEN)} are taken"
            )
            raise ConfigError(f'deepspeed_config: {file} sets "{name}"; leave it out, {instead}')
    zero = given.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    _check_zero_optimization(zero, f"deepspeed_config: {file}: zero_optimization")
    if config.gathered_precision == "bfloat16" and zero["stage"] == 1:
        raise ConfigError(
            f'gathered_precision = "bfloat16": {file} sets ZeRO stage 1, for which DeepSpeed uses another '
            'optimizer; set stage 2 or 3, or gathered_precision = "float32"'
        )
    return {
        **given,
        **(_MIXED if config.gathered_precision == "bfloat16" else {}),
        "train_micro_batch_size_per_gpu": 1,  # demanded, and used for DeepSpeed's own statistics alone
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # AdamW is torch's, also where its state lies in the memory of the CPU
    }


def check_one_precision(config: PPOConfig) -> None:
    """DeepSpeed wants all weights of a network in one type, and all networks that it spreads.

    Raises:
        ConfigError: they are not.
    """
    what = "lora_rank" if config.lora_rank else "stage 3" if is_stage_3(zero_settings(config)) else ""
    if what and config.frozen_precision != config.gathered_precision:
        raise ConfigError(
            f'frozen_precision = "{config.frozen_precision}" and gathered_precision = "{config.gathered_precision}": '
            f'they have to be the same with sharding = "deepspeed" and {what}'
        )


def is_stage_3(settings: Mapping[str, Any]) -> bool:
    """Whether weights are spread too."""
    return bool(settings["zero_optimization"]["stage"] == 3)


def _check_zero_optimization(zero: Mapping[str, Any], where: str) -> None:
    if zero.get("stage") not in (1, 2, 3):
        raise ConfigError(f"{where}.stage = {zero.get('stage')}; has to be 1, 2 or 3")
    if "compute_grad_norm" in zero:
        raise ConfigError(
            f"{where}.compute_grad_norm: leave it out, because the norm shows whether a gradient is finite"
        )
    for name, value in zero.items():
        if value == "auto":
            raise ConfigError(f'{where}.{name} = "auto"; give a number or leave it out')
        if isinstance(value, dict) and value.get("device") == "nvme":
            raise ConfigError(f'{where}.{name}.device = "nvme"; has to be "cpu"')


def _read(file: str) -> dict[str, Any]:
    try:
        given = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"deepspeed_config: {file} cannot be read ({error.strerror}); give a JSON file") from error
    except ValueError as error:
        raise ConfigError(f"deepspeed_config: {file} is not JSON ({error})") from error
    if not isinstance(given, dict):
        raise ConfigError(f"deepspeed_config: {file} holds no JSON object; give DeepSpeed's configuration")
    return given
