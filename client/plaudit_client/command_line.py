"""How a command of the client, the trainer or the demo ends: an exit status, and one line that says what was wrong."""

import argparse
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Protocol, runtime_checkable

# Set to anything, it shows the stack trace of an internal error too.
_SHOW_TRACE = "PLAUDIT_TRACEBACK"


@runtime_checkable
class _HasExitCode(Protocol):
    """An error whose text is the line that the user reads."""

    exit_code: int


class Parser(argparse.ArgumentParser):
    """Ends a command that is called wrongly with one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        command = self.prog.removeprefix("python -m ").split()[0]  # of a subcommand's parser, too
        sys.exit(fail(command, f"{message}; see {self.prog} --help", 2))


def run(
    command: str,
    body: Callable[[], int],
    *,
    extra: str,
    interrupted: str = "interrupted",
    quiet: bool = False,
) -> int:
    """Run a command; returns its exit code. Whatever ends it, no stack trace is shown.

    Args:
        command: Its name.
        body: What it does; returns the exit code. An error with an `exit_code` ends it with one line.
        extra: Of the package, which brings what the command imports.
        interrupted: What is said of Ctrl-C.
        quiet: Say nothing of what all processes of a run meet alike, as in all of them but the first.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # process 1 gets only what it has a handler for
    _show_every_letter()
    try:
        exit_code = body()
        _flush()
        return exit_code
    except ModuleNotFoundError as error:
        message, exit_code = f"{error.name} is not installed; pip install 'plaudit[{extra}]'", 2
    except KeyboardInterrupt:
        if not quiet:
            say(f"{command}: {interrupted}")
        return 130
    except OSError as error:
        drop_output()
        return fail(command, str(error), 1)
    except Exception as error:  # noqa: BLE001  a user never sees a stack trace
        if not isinstance(error, _HasExitCode):
            return fail(command, describe_bug(error), 1)
        message, exit_code = str(error), error.exit_code
    return exit_code if quiet else fail(command, message, exit_code)


def fail(command: str, message: str, exit_code: int) -> int:
    """Print an error as one line; returns the exit code."""
    say(f"{command}: error: {' '.join(message.split())}")
    return exit_code


def tell(text: str) -> None:
    """Print what a command has done. Where it cannot be read, a full disk or a closed pipe, it is done all the same."""
    try:
        print(text)
        _flush()
    except OSError:
        drop_output()


def say(line: str) -> None:
    """Print a line on standard error, where that can be written."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def describe_bug(error: Exception) -> str:
    """One line on an error that no user is to blame for."""
    if isinstance(error, MemoryError):
        return f"out of memory ({error or 'in Python'}); give it less to do at once, or more memory"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames[1:] if "/plaudit_" in frame.filename] or frames
    if os.environ.get(_SHOW_TRACE):
        say("".join(traceback.format_exception(error)))
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return (
        f"internal error: {type(error).__name__}: {error} ({where}); please report it with what {_SHOW_TRACE}=1 shows"
    )


def _show_every_letter() -> None:
    """Print letters that the output's encoding lacks as escapes, as Python does for standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:  # it was closed before the command began
        sys.stdout.flush()


def drop_output() -> None:
    """What is still buffered must not fail once more when Python flushes it at exit."""
    with suppress(OSError, AttributeError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
