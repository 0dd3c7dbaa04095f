"""What a command prints. A line that cannot be shown never decides how the command ends."""

import io
import logging
import os
import sys
from contextlib import suppress
from typing import TextIO

from tqdm import tqdm


def prepare_terminal(command: str, *, is_first_process: bool = True) -> None:
    """Lets every line be printed, in whatever encoding, and shows what our modules log.

    Args:
        command: begins each logged line.
        is_first_process: of a distributed run; the others log nothing.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is from the start
    logging.getLogger("plaudit_ppo").handlers = [_Lines(command) if is_first_process else logging.NullHandler()]


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line, if it can be written: a pipe may be closed, and a disk full."""
    try:
        print(line, file=file, flush=True)
    except OSError:
        with suppress(OSError):  # or the interpreter tries again when it ends, and makes an exit code of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), (file or sys.stdout).fileno())


class _Lines(logging.Handler):
    """Above the progress bar, if there is one."""

    def __init__(self, command: str) -> None:
        super().__init__(logging.WARNING)
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            tqdm.write(f"{self._command}: {record.getMessage()}", file=sys.stderr)
