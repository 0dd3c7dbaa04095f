"""Experiment trackers: each iteration's metrics to TensorBoard, Weights & Biases and others, through accelerate."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from plaudit_ppo.config import PLACES, PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.runs.log import Metrics

_PROJECT = "plaudit-ppo"


def check_trackers(names: Sequence[str]) -> None:
    """Refuses a tracker that nobody knows, or whose package is missing.

    Raises:
        ConfigError: says which.
    """
    known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    available = [str(kind.value) for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ConfigError(f'trackers: "{name}" is not a tracker; choose from {", ".join(known)}')
        if name not in available:
            raise ConfigError(f"trackers: {name} is not installed; pip install {name}, or leave it out")


@contextmanager
def tracking(accelerator: Accelerator, config: PPOConfig, *, done: int) -> Iterator[Callable[[Metrics], None]]:
    """Starts the trackers and ends them; inside, a function that sends an iteration's metrics, its number as the step.

    Args:
        accelerator: which knows the trackers.
        config: told to the trackers, but for paths and addresses.
        done: iterations that a continued run has behind it. TensorBoard hides what it was told of later ones.
    """
    names = [spec.name for spec in fields(config) if spec.name not in PLACES]
    settings = {name: _plain(getattr(config, name)) for name in names}
    options = {"tensorboard": {"purge_step": done + 1}, "wandb": {"name": Path(config.output).name}}
    try:
        accelerator.init_trackers(_PROJECT, config=None if done else settings, init_kwargs=options)
    except Exception as error:  # trackers are anybody's code
        raise ConfigError(f"trackers: {', '.join(config.trackers)} cannot be started ({error})") from error

    def track(metrics: Metrics) -> None:
        numbers = {name: value for name, value in metrics.items() if value is not None}
        accelerator.log(numbers, step=int(numbers["iteration"]))

    try:
        yield track
    finally:
        for tracker in accelerator.trackers:  # not accelerator.end_training(), which ends the process group too
            tracker.finish()


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
