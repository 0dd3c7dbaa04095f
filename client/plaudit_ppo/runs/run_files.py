"""What a run leaves in its output directory: settings, logs, checkpoints, and at the end the result.

What can fail at the end is tried at the start.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit_client.whole_files import remove_unfinished, write_file
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.collectives import from_first_process
from plaudit_ppo.distributed.learner import Learner
from plaudit_ppo.errors import CheckpointError, ConfigError, OutputError
from plaudit_ppo.models.critic import Critic, TrunkCritic
from plaudit_ppo.models.kept_weights import KeptWeights
from plaudit_ppo.models.lora import is_lora, save_adapter, save_merged
from plaudit_ppo.models.networks import save_network
from plaudit_ppo.models.policy import mend_generation_config
from plaudit_ppo.models.sharding import whole_state
from plaudit_ppo.runs.checkpoints import (
    PREVIOUS_POLICY,
    RunState,
    checkpoint_path,
    load_optimizer,
    load_state,
    name_best,
    newest_checkpoint,
    optimizer_tensors,
    restore_policy,
    restore_weights,
    save_checkpoint,
)
from plaudit_ppo.runs.directories import left_directory, trial_directory
from plaudit_ppo.runs.locks import locked
from plaudit_ppo.runs.log import RunLog, read_log
from plaudit_ppo.runs.model_card import model_card
from plaudit_ppo.runs.summary import NOTHING_YET, TrainSummary, summarize
from plaudit_ppo.settings_text import to_toml

_State = dict[str, Tensor]
_EVALUATIONS = "evaluations.jsonl"


def refuse_a_held_run(output: Path) -> None:
    """Refuses a directory in which a run has been.

    Raises:
        ConfigError: one has.
    """
    held = [name for name in ("log.jsonl", "checkpoints") if (output / name).exists()]
    if held:
        raise ConfigError(
            f"output: {output} already holds a run ({held[0]}); choose another directory, or resume that run"
        )


class RunFiles:
    """The output directory of a run.

    Args:
        config: the settings, of which `output` is the directory.
        learner: what is stored, and restored on a resume.
        tokenizer: stored with the policy.
        kept: of the policy, stored and restored where there are any.
    """

    def __init__(
        self, config: PPOConfig, learner: Learner, tokenizer: PreTrainedTokenizerBase, kept: KeptWeights
    ) -> None:
        self._config = config
        self._learner = learner
        self._tokenizer = tokenizer
        self._kept = kept
        self._output = Path(config.output)
        self._accelerator = learner.accelerator
        mend_generation_config(self._policy)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the directory and keeps other runs out of it, until the block or the first process ends.

        Raises:
            ConfigError: another run is in it, or it cannot be written.
        """
        with ExitStack() as stack:
            self._in_first_process(lambda: stack.enter_context(locked(self._output)))
            yield

    def open(self, start: RunState, *, resume: bool) -> RunState:
        """Begins a run in the directory, or goes on with the one in it: the learner gets the newest checkpoint's state.

        Args:
            start: the state of a run that has done nothing yet.
            resume: whether the directory may hold a run.

        Returns:
            Where the run stands.

        Raises:
            ConfigError: the directory cannot be written, or holds a run and this is no resume.
            CheckpointError: the checkpoint is broken, or of other models or prompts.
        """
        self._accelerator.wait_for_everyone()  # so that no process sees what the first one of this run writes
        if not resume:
            refuse_a_held_run(self._output)
        checkpoint = newest_checkpoint(self._output / "checkpoints")
        state = start if checkpoint is None else self._restore(checkpoint, start)
        self._accelerator.wait_for_everyone()
        self._in_first_process(self._begin)
        return state

    def _begin(self) -> None:
        remove_unfinished(self._output / "checkpoints")
        write_file(self._output / "config.toml", to_toml(self._config))

    def _in_first_process(self, write: Callable[[], object]) -> None:
        """Writes; where that fails, every process raises, so that none waits for the first."""

        def written() -> None:
            try:
                write()
            except OSError as error:
                raise ConfigError(
                    f"output: {self._output} cannot be written ({error.strerror}); choose another"
                ) from error

        from_first_process(self._accelerator, written)

    def _restore(self, checkpoint: Path, start: RunState) -> RunState:
        state = load_state(checkpoint)
        if state.prompts_hash != start.prompts_hash:
            raise CheckpointError(
                f"{checkpoint}: the prompts or the tokenizer have changed since this checkpoint, so the run cannot "
                "continue at its place in the prompts; restore the old ones, or start a new run"
            )
        if self._config.max_staleness and (checkpoint / PREVIOUS_POLICY).exists():
            restore_policy(self._policy, checkpoint / PREVIOUS_POLICY)
            self._kept.keep()
        restore_weights(self._policy, self._critic, checkpoint)
        self._learner.restore_optimizer(load_optimizer(checkpoint, self._learner.shapes))
        # A fixed beta is the setting's, which may have been changed for the resume.
        return replace(state, kl_coef=start.kl_coef) if self._config.kl_controller == "fixed" else state

    @contextmanager
    def logs(self, *, done: int) -> Iterator[tuple[RunLog, RunLog]]:
        """log.jsonl and samples.jsonl, with the lines of the first `done` iterations."""
        with self._log("log.jsonl", done=done) as log, self._log("samples.jsonl", done=done) as samples:
            yield log, samples

    @contextmanager
    def evaluations(self, *, done: int) -> Iterator[tuple[RunLog, list[dict[str, Any]]]]:
        """evaluations.jsonl, and the lines of the first `done` iterations that it has, in every process.

        None are kept where nothing is done: then the start is evaluated again.
        """
        with self._log(_EVALUATIONS, done=done) as log:
            yield log, from_first_process(self._accelerator, lambda: read_log(self._output / _EVALUATIONS))

    def _log(self, name: str, *, done: int) -> RunLog:
        return RunLog(self._output / name if self._accelerator.is_main_process else None, done=done)

    def name_best(self, best: int | None) -> None:
        """Has checkpoints/best lead to the best checkpoint, which a run that was killed may not have come to.

        Args:
            best: after how many iterations the policy was best; None: not known, and it is tried whether it could be.

        Raises:
            OutputError: the file system takes no links.
        """
        self._in_first_process(lambda: name_best(self._output / "checkpoints", best))

    def save_checkpoint(self, state: RunState, *, best: int | None = None, remove_old: bool = True) -> Path:
        """Writes a checkpoint of where the run stands; returns its directory.

        Args:
            state: where the run stands.
            best: after how many iterations the policy was best, whose checkpoint is kept; None: not known.
            remove_old: whether the oldest ones beyond `max_checkpoints` are removed.

        Raises:
            OutputError: it cannot be written.
        """
        policy, critic = self._whole_states()
        optimizer = optimizer_tensors(self._learner.optimizer_state(), keep=self._accelerator.is_main_process)
        previous = self._previous_policy() if self._kept.exist else None

        def write_models(directory: Path) -> None:
            self._write_policy(directory / "policy", policy, save_adapter)
            self._critic.save_pretrained(directory / "critic", critic)
            if previous is not None:
                self._write_policy(directory / PREVIOUS_POLICY, previous, save_adapter)

        folder = self._output / "checkpoints"
        keep = self._config.max_checkpoints if remove_old else None
        self._in_first_process(
            lambda: save_checkpoint(folder, state, optimizer, write_models=write_models, keep=keep, best=best)
        )
        return checkpoint_path(folder, state.iteration)

    def try_result(self, state: RunState) -> None:
        """Writes what `finish` would, and removes it, so that a run does not begin that could leave nothing.

        Raises:
            CheckpointError: it cannot be written; the message says why.
        """
        parts = self._result(state, NOTHING_YET, *self._whole_states())

        def write() -> None:
            try:
                with trial_directory(self._output / "result") as directory:
                    for name, write_part in parts.items():
                        write_part(directory / name)
            except OutputError as error:
                raise CheckpointError(
                    f"the results of the run could not be written at its end, so it does not start: {error}"
                ) from error

        self._in_first_process(write)

    def finish(self, state: RunState) -> TrainSummary:
        """Writes policy/ (with its card), critic/, summary.json, and the adapter/ of a LoRA policy.

        Raises:
            OutputError: one of them cannot be written.
        """
        weights = self._whole_states()
        summary = [
            summarize(read_log(self._output / "log.jsonl"), read_log(self._output / _EVALUATIONS))
            if self._accelerator.is_main_process
            else NOTHING_YET
        ]

        def write() -> None:
            for name, write_part in self._result(state, summary[0], *weights).items():
                with left_directory(self._output / name) as directory:
                    write_part(directory)
            write_file(self._output / "summary.json", json.dumps(summary[0].to_json(), indent=2) + "\n")

        self._in_first_process(write)
        return broadcast_object_list(summary)[0]  # type: ignore[no-any-return]

    def _result(
        self, state: RunState, summary: TrainSummary, policy: _State, critic: _State
    ) -> Mapping[str, Callable[[Path], None]]:
        """What writes each directory of the result, by its name."""

        def write_policy(directory: Path) -> None:
            self._write_policy(directory, policy, save_merged)
            card = model_card(self._config, summary, fingerprint=state.fingerprint)
            (directory / "README.md").write_text(card, encoding="utf-8")

        parts: dict[str, Callable[[Path], None]] = {"policy": write_policy}
        if is_lora(self._policy):
            parts["adapter"] = lambda directory: save_adapter(self._policy, directory, policy)
        return parts | {"critic": lambda directory: self._critic.save_pretrained(directory, critic)}

    @property
    def _policy(self) -> PreTrainedModel:
        policy: PreTrainedModel = self._accelerator.unwrap_model(self._learner.policy)
        return policy

    @property
    def _critic(self) -> Critic | TrunkCritic:
        critic: Critic | TrunkCritic = self._accelerator.unwrap_model(self._learner.critic)
        return critic

    def _whole_states(self) -> tuple[_State, _State]:
        """Of policy and critic, for the first process; all have to take part."""
        keep = self._accelerator.is_main_process
        return whole_state(self._policy, keep=keep), whole_state(self._critic, keep=keep)

    def _previous_policy(self) -> _State:
        """Of the policy that the next batch is sampled by, likewise."""
        with self._kept.swapped_in():
            return copy.deepcopy(whole_state(self._policy, keep=self._accelerator.is_main_process))

    def _write_policy(
        self, directory: Path, state: _State, save_lora: Callable[[PreTrainedModel, Path, _State], None]
    ) -> None:
        if is_lora(self._policy):
            save_lora(self._policy, directory, state)
        else:
            save_network(self._policy, directory, state)
        self._tokenizer.save_pretrained(directory)
