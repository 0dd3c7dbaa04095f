"""The other parts of plaudit as processes.

Whatever happens in the block that uses a process, the process is gone afterwards.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from plaudit_demo.errors import DemoError

# Read when torch and the others are imported: nothing is asked of a hub, and a GPU would give other figures.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
}

_POLL_S = 0.2
_TERMINATE_TIMEOUT_S = 10.0
_TAIL_CHARS = 400
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def command(name: str) -> str:
    """The path of one of this environment's commands, also where the environment is not on PATH."""
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else name


def run_to_end(arguments: Sequence[str], log: Path, *, on_poll: Callable[[], None]) -> None:
    """Run a command until it ends.

    Args:
        arguments: the command and its arguments.
        log: where its stdout and stderr go.
        on_poll: called a few times a second meanwhile.

    Raises:
        DemoError: the command cannot be started or fails.
    """
    with running(arguments, log) as process:
        while (status := wait(process)) is None:
            on_poll()
    if status != 0:
        raise failed(arguments, status, log)


@contextmanager
def running(arguments: Sequence[str], log: Path, *, piped: bool = False) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command for as long as the block runs, then stop it.

    It has a session of its own: a Ctrl-C reaches this process only, which then stops the other one in order. It does
    not inherit PLAUDIT_* settings: an API key of another service must not lock the demo out of its own.

    Args:
        arguments: the command and its arguments.
        log: where its stdout and stderr go.
        piped: stdin and stdout are pipes to this process; the log gets stderr alone.

    Raises:
        DemoError: the command cannot be started.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
    process = None
    try:
        with log.open("wb") as output, _interrupts_deferred():
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        yield process
    except FileNotFoundError as error:
        if process is not None:
            raise
        raise DemoError(f"{arguments[0]} is not installed; pip install 'plaudit[demo,export]'") from error
    finally:
        if process is not None:
            with _interrupts_deferred():
                stop(process, _TERMINATE_TIMEOUT_S)
            for pipe in filter(None, (process.stdin, process.stdout)):
                with suppress(BrokenPipeError):  # what was written last was not read
                    pipe.close()


def wait(process: "subprocess.Popen[bytes]") -> int | None:
    """Wait a moment; the exit status, or None while the process runs."""
    try:
        return process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return None


def stop(process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    """Terminate a process and what it started in its session; kill what is left after `timeout_s`."""
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def failed(arguments: Sequence[str], status: int, log: Path) -> DemoError:
    """The error for a command that should not have ended like this: how it ended, the end of its log, where that is."""
    tail = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-_TAIL_CHARS:]
    how = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
    return DemoError(f"{Path(arguments[0]).name} ended with {how}: {tail or 'no output'} (whole log: {log})")


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # all of it has ended


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM: none comes between the start of a process and its name, nor cuts its end short."""
    if threading.current_thread() is not threading.main_thread():  # only there do Python's handlers run
        yield
        return
    caught: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    handlers = {number: signal.signal(number, remember) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
