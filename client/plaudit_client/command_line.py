"""How a command of the client, the trainer or the demo ends: an exit status, and one line that says what was wrong."""

import argparse
import errno
import importlib.metadata
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol, runtime_checkable

# Set to anything, it shows the stack trace of an internal error too.
_SHOW_TRACE = "PLAUDIT_TRACEBACK"
# How long after an interrupt that Python dropped the next one comes.
_AGAIN_S = 0.05
# Of a longer message the middle is left out: what and where stand at its beginning, the remedy at its end.
_MAX_START_CHARS, _MAX_END_CHARS = 600, 300

_Handler = Callable[[int, FrameType | None], Any]


@runtime_checkable
class _HasExitCode(Protocol):
    """An error whose text is the line that the user reads."""

    exit_code: int


class Parser(argparse.ArgumentParser):
    """Ends a command that is called wrongly with one line, without the usage; knows `--version`.

    Completes words for a shell that asks by argcomplete: eval "$(register-python-argcomplete COMMAND)".
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        parsed: argparse.Namespace = super().parse_args(args, namespace)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        command = self.prog.removeprefix("python -m ").split()[0]  # of a subcommand's parser, too
        sys.exit(fail(command, f"{message}; see {self.prog} --help", 2))

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse's, it fails where it cannot be written."""
        (file or sys.stdout).write(self.format_help())


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        command = parser.prog.removeprefix("python -m ").split()[0]
        print(f"{command} {importlib.metadata.version('plaudit')}")
        parser.exit()


def run(
    command: str,
    body: Callable[[], int],
    *,
    extra: str = "",
    interrupted: str = "interrupted",
    quiet: bool = False,
) -> int:
    """Run a command; returns its exit code. Whatever ends it, no stack trace is shown.

    SIGINT and SIGTERM end the process at once, but for what runs inside `interruptible`.

    Args:
        command: Its name.
        body: What it does; returns the exit code. An error with an `exit_code` ends it with one line.
        extra: Of the package, which brings what the command imports; "": the package without any does.
        interrupted: What is said of Ctrl-C.
        quiet: Say nothing of what all processes of a run meet alike, as in all of them but the first.
    """
    _open_streams()
    _show_every_letter()
    try:
        with _on_signals(_end_at_once(None if quiet else f"{command}: {interrupted}")):
            return _to_the_end(body)
    except ModuleNotFoundError as error:
        message, exit_code = f"{error.name} is not installed; pip install {_package(extra)}", 2
    except KeyboardInterrupt:
        if not quiet:
            say(f"{command}: {interrupted}")
        return 130
    except OSError as error:
        _drop_output()
        return fail(command, _describe(error), 1)
    except Exception as error:  # noqa: BLE001  a user never sees a stack trace
        if not isinstance(error, _HasExitCode):
            return fail(command, _describe_bug(error), 1)
        message, exit_code = str(error), error.exit_code
    return exit_code if quiet else fail(command, message, exit_code)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise KeyboardInterrupt, so that what was begun is cleared away.

    Not where packages are imported: an exception out of nowhere may meet their C code, which takes it for a bug.
    Python drops an exception in a destructor or in the callback of a weak reference: the signal is then sent again.
    """
    hook = sys.unraisablehook

    def on_dropped(dropped: Any) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            hook(dropped)
            return
        main = threading.main_thread().ident
        threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGTERM)).start()  # this hook is over by then

    sys.unraisablehook = on_dropped
    try:
        with _on_signals(signal.default_int_handler):
            yield
    finally:
        sys.unraisablehook = hook


def fail(command: str, message: str, exit_code: int) -> int:
    """Print an error as one line; returns the exit code."""
    printable = message.encode(errors="backslashreplace").decode()  # names of files may hold any bytes
    say(f"{command}: error: {_short_line(' '.join(printable.split()))}")
    return exit_code


def tell(text: str) -> None:
    """Print what a command has done. Where it cannot be read, a full disk or a closed pipe, it is done all the same."""
    try:
        print(text)
        sys.stdout.flush()
    except OSError:
        _drop_output()


def say(line: str) -> None:
    """Print a line on standard error, where that can be written."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def _describe_bug(error: Exception) -> str:
    """One line on an error that no user is to blame for."""
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({error or 'in Python'}); process less at the same time, or use a machine with more memory"
        )
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/plaudit_" in frame.filename and frame.filename != __file__] or frames
    if os.environ.get(_SHOW_TRACE):
        say("".join(traceback.format_exception(error)))
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return (
        f"internal error: {type(error).__name__}: {error} ({where}); please report it with the output of "
        f"{_SHOW_TRACE}=1"
    )


def _short_line(text: str) -> str:
    if len(text) > _MAX_START_CHARS + _MAX_END_CHARS:
        text = f"{text[:_MAX_START_CHARS]} ... {text[-_MAX_END_CHARS:]}"
    return "".join(char if char.isprintable() else " " for char in text)


def _describe(error: OSError) -> str:
    """One line on what the system refused; of a stream it knows no name."""
    if error.filename is None and error.errno in {errno.EBADF, errno.EPIPE, errno.ENOSPC}:
        return "output: the stream is closed" if error.errno == errno.EBADF else f"output: {error.strerror}"
    return str(error)


@contextmanager
def _on_signals(handler: _Handler) -> Iterator[None]:
    """Inside, a handler for SIGINT and SIGTERM; also as process 1, which gets only what it has a handler for."""
    if threading.current_thread() is not threading.main_thread():  # only there may it be set
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] is signal.SIG_IGN:  # as in the background of a shell
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _end_at_once(line: str | None) -> _Handler:
    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        if line is not None:
            with suppress(OSError):
                os.write(sys.stderr.fileno(), f"{line}\n".encode())  # print may be what is interrupted
        os._exit(130)

    return end


def _package(extra: str) -> str:
    return f"'plaudit[{extra}]'" if extra else "plaudit"


def _to_the_end(body: Callable[[], int]) -> int:
    """What was printed has to be out at the end, also where the parser ends the command, as for --help."""
    try:
        exit_code = body()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return exit_code


def _open_streams() -> None:
    """Open something in place of standard streams that are closed, before a file or a socket takes their numbers.

    What reads or writes there is refused, as before; but standard error takes all, because nobody has to read it.
    """
    for name, access, mode in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, access)  # the lowest that is free
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, errors="backslashreplace", closefd=False))


def _show_every_letter() -> None:
    """Print letters that the output's encoding lacks as escapes, as Python does for standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is still buffered must not fail once more when Python flushes it at exit."""
    with suppress(OSError, AttributeError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
