"""A PPO run after the other, each killed and resumed as the nemesis likes, and compared with the undisturbed one."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nemesis.history import Happened, History
from nemesis.models import HELPFUL, Models
from plaudit_ppo import PPOConfig
from plaudit_ppo.runs.log import read_log
from plaudit_ppo.settings_text import to_toml

TRAIN = (str(Path(sys.executable).with_name("plaudit-ppo")),)

_ITERATIONS = 12
_VARYING = ("time/", "scoring/call_s", "scoring/exposed_wait_s", "scoring/retries", "sampler/retries")
_COMPARED = ("policy/model.safetensors", "critic/model.safetensors", "samples.jsonl")
# What a run may end with by itself while scorers and disk are as they are: 1, with one line that says why.
_STOPPED = 1
_REFUSED = 2
_TERMINATED = 130
_PATIENCE_S = 240.0
_TICK_S = 0.001


@dataclass(frozen=True)
class Places:
    """What a run needs.

    Attributes:
        models: Its policy and prompts.
        urls: Of the scorers.
        engine_url: Of what samples; None: the run itself.
    """

    models: Models
    urls: Sequence[str]
    engine_url: str | None


def write_config(file: Path, places: Places, output: Path) -> Path:
    """The settings of a run; all runs differ in their places alone."""
    models, engine = places.models, {}
    if places.engine_url is not None:
        engine = {"sampler": "vllm", "engine_urls": (places.engine_url,), "engine_timeout_s": 60.0}
    config = PPOConfig(
        policy=str(models.policy),
        prompts=(str(models.prompts),),
        scorer_urls=(f"{','.join(places.urls)}#{HELPFUL}",),
        output=str(output),
        iterations=_ITERATIONS,
        rollout_batch_size=16,
        rollout_micro_batch_size=8,
        max_completion_tokens=8,
        num_minibatches=2,
        learning_rate=3e-3,
        temperature=1.0,
        missing_eos="off",
        kl_controller="adaptive",
        checkpoint_every=1,
        sample_every=2,
        scorer_timeout_s=120.0,
        max_masked_share=0.0,
        **engine,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_toml(config), encoding="utf-8")
    return file


@contextlib.contextmanager
def training(command: Sequence[str], arguments: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
    """A `plaudit-ppo train` process; killed at the end of the block if it still runs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
    process = subprocess.Popen(
        [*command, "train", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=env | {"OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def train_undisturbed(places: Places, folder: Path) -> Path:
    """The output of a run that nothing happens to.

    Raises:
        RuntimeError: it failed.
    """
    output = folder / "undisturbed"
    config = write_config(folder / "undisturbed.toml", places, output)
    with training(TRAIN, ["--config", str(config)]) as process:
        _, said = process.communicate(timeout=_PATIENCE_S)
    if process.returncode != 0:
        raise RuntimeError(f"the undisturbed PPO run ended with exit code {process.returncode}: {said[-2000:]}")
    return output


class Trainer:
    """Runs PPO until the block ends: to its end, or until it is killed, then on with `--resume`.

    Args:
        command: What trains.
        places: What each run needs.
        folder: Where runs are written, which may be a full disk.
        undisturbed: The output to compare with.
        history: What happens is counted there.
        clock: Seconds since the start.
        on_broken: Called with each sentence about what must not happen.
    """

    def __init__(
        self,
        command: Sequence[str],
        places: Places,
        folder: Path,
        undisturbed: Path,
        history: History,
        clock: Callable[[], float],
        on_broken: Callable[[str], None],
    ) -> None:
        self._command, self._places = command, places
        self._folder, self._undisturbed = folder, undisturbed
        self._history, self._clock, self._on_broken = history, clock, on_broken
        self._process: subprocess.Popen[str] | None = None
        self._signalled: int | None = None
        self._ending = threading.Event()
        self._may_start = threading.Event()
        self._may_start.set()
        self._thread = threading.Thread(target=self._run, name="trainer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._may_start.set()
        if error is not None:
            self.send(signal.SIGKILL)
        self._thread.join()

    def send(self, number: int) -> None:
        """Send the running process a signal, if there is one."""
        process = self._process
        if process is not None and process.poll() is None:
            if number in {signal.SIGKILL, signal.SIGTERM}:
                self._signalled = number
            process.send_signal(number)

    @contextlib.contextmanager
    def ended(self, number: int) -> Iterator[None]:
        """Ended by a signal at the begin of the block, resumed at its end."""
        self._may_start.clear()
        self.send(number)
        try:
            yield
        finally:
            self._may_start.set()

    def wait_for_checkpoint(self, seconds: float, over: threading.Event) -> None:
        """Return once another checkpoint is begun, whatever its name is until it is whole, or the time is over."""
        end = self._clock() + seconds
        before = self._checkpoints()
        while self._checkpoints() <= before and self._clock() < end and not over.wait(_TICK_S):
            before &= self._checkpoints()

    def _checkpoints(self) -> set[str]:
        return {file.name for file in self._folder.glob("run-*/checkpoints/*")}

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stands still in the block."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def _run(self) -> None:
        number = 0
        while not self._ending.is_set():
            output = self._folder / f"run-{number}"
            if self._train_to_the_end(output):
                for sentence in differences(output, self._undisturbed):
                    self._on_broken(f"PPO {sentence}")
                self._history.training["finished"] += 1
            shutil.rmtree(output, ignore_errors=True)
            number += 1

    def _train_to_the_end(self, output: Path) -> bool:
        """Begin and resume a run until it is done; False: the block ended first, or the run is lost."""
        config = write_config(self._folder.parent / f"{output.name}.toml", self._places, output)
        while True:
            self._may_start.wait()
            if self._ending.is_set() and not (output / "log.jsonl").exists():
                return False
            self._signalled = None
            with training(self._command, ["--config", str(config), "--resume", str(output)]) as process:
                self._process = process
                _, said = process.communicate()
            code, signalled = process.returncode, self._signalled
            if code == 0:
                return True
            how = _how_it_ended(code, signalled, said)
            self._history.training[how or "broken"] += 1
            self._history.seen.append(
                Happened(self._clock(), self._clock(), "trainer", f"exit code {code}: {said[-300:]}")
            )
            if how is None or "Traceback" in said:
                self._on_broken(f"PPO {output.name}: exit code {code}: {said[-500:].strip()}")
                return False


def _how_it_ended(code: int, signalled: int | None, said: str) -> str | None:
    """What an exit code other than 0 means; None: what must not be.

    A run that does not begin because its output cannot be written ends with 2.
    """
    if signalled == signal.SIGKILL and code == -signal.SIGKILL:
        return "killed"
    if signalled == signal.SIGTERM and code in {_TERMINATED, -signal.SIGTERM}:  # the latter before it has a handler
        return "terminated"
    is_refused = code == _REFUSED and os.strerror(errno.ENOSPC) in said
    return "stopped" if code == _STOPPED or is_refused else None


def differences(run: Path, undisturbed: Path) -> list[str]:
    """What a finished run left that differs from what the undisturbed one left; times and retries do not count."""
    compared = [*_COMPARED, "log.jsonl"]
    different = [name for name in compared if _content(run / name) != _content(undisturbed / name)]
    return [f"{run.name}: {name} differs from that of the undisturbed run" for name in different]


def _content(file: Path) -> Any:
    if file.name != "log.jsonl":
        return file.read_bytes()
    return [{name: v for name, v in line.items() if not name.startswith(_VARYING)} for line in read_log(file)]
