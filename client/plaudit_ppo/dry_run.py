"""A run that is tried before it is begun: all is loaded, one tiny iteration is run to its end, nothing is left."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.processes import make_accelerator
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.launch import Scorers, load_trainer
from plaudit_ppo.planning.plan import make_plan, read_network_configs
from plaudit_ppo.planning.plan_text import plan_line
from plaudit_ppo.runs.run_files import refuse_a_held_run
from plaudit_ppo.runs.trackers import check_trackers
from plaudit_ppo.termination import Termination

_MAX_COMPLETION_TOKENS = 8
_ROLLOUTS = 2


def try_run(config: PPOConfig, scorers: Scorers, *, termination: Termination) -> list[str]:
    """Runs one iteration of a few short rollouts, and all that a run does at its end; then removes what it has left.

    All prompts are encoded, the scorers asked, held-out prompts evaluated, a checkpoint and the result written where
    the run would be.

    Returns:
        A line on each source of prompts, and one on the memory that the run itself will take.

    Raises:
        PPOError: whatever would end the run, with the run's own message.
    """
    check_trackers(config.trackers)
    accelerator = make_accelerator(replace(config, trackers=()))
    refuse_a_held_run(Path(config.output))
    accelerator.wait_for_everyone()
    left = _removed(Path(config.output) / ".dry-run", is_first_process=accelerator.is_main_process)
    with left as directory, _without_warnings():
        trainer = load_trainer(_tiny(config, directory, processes=accelerator.num_processes), scorers)
        trainer.check_context(config.max_completion_tokens)
        trainer.train(termination=termination)
        accelerator.wait_for_everyone()
    device = "cuda" if accelerator.device.type == "cuda" else "cpu"
    return [*trainer.prompt_lines, _planned(config, processes=accelerator.num_processes, device=device)]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of the trainer: short completions seldom end by themselves, which says nothing of the run."""
    log = logging.getLogger("plaudit_ppo.trainer")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _planned(config: PPOConfig, *, processes: int, device: str) -> str:
    try:
        return plan_line(make_plan(config, read_network_configs(config), processes=processes, device=device))
    except ConfigError as error:  # it is a figure for the reader, and no reason for a run to fail
        return str(error)


def _tiny(config: PPOConfig, output: Path, *, processes: int) -> PPOConfig:
    """The settings of a run, but for its extent. Without trackers, which would show a run that is none."""
    rollouts = max(_ROLLOUTS, config.samples_per_prompt)
    tokens = min(config.max_completion_tokens, _MAX_COMPLETION_TOKENS)
    return replace(
        config,
        output=str(output),
        iterations=1,
        epochs=1,
        num_minibatches=1,
        critic_warmup_iterations=0,
        rollout_batch_size=rollouts * processes,
        rollout_micro_batch_size=rollouts,
        micro_batch_size=_ROLLOUTS,
        max_completion_tokens=tokens,
        overlong_buffer_tokens=min(config.overlong_buffer_tokens, tokens),
        max_constant_iterations=0,
        eval_every=1,
        max_eval_prompts=_ROLLOUTS * processes,
        trackers=(),
    )


@contextmanager
def _removed(directory: Path, *, is_first_process: bool) -> Iterator[Path]:
    """Yields a path that is removed at the end, with the parents that were made for it."""
    made = [parent for parent in directory.parents if not parent.exists()]
    if is_first_process:
        shutil.rmtree(directory, ignore_errors=True)  # of a dry run that was killed
    try:
        yield directory
    finally:
        if is_first_process:
            shutil.rmtree(directory, ignore_errors=True)
            for parent in made:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
