"""How a command of the service or the exporter ends: an exit code, and one line that says what was wrong."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn, Protocol, runtime_checkable


@runtime_checkable
class _HasExitCode(Protocol):
    """An error whose text is the line that the user reads."""

    exit_code: int


class Parser(argparse.ArgumentParser):
    """Ends a command that is called wrongly with one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        command = self.prog.split()[0]  # of a subcommand's parser, too
        sys.exit(fail(command, f"{message}; see {self.prog} --help", 2))


def run(command: str, body: Callable[[], int], *, extra: str) -> int:
    """Run a command; returns its exit code.

    Args:
        command: its name.
        body: what it does; returns the exit code. An error with an `exit_code` ends it with one line.
        extra: of the package, which brings what the command imports.
    """
    try:
        return body()
    except ModuleNotFoundError as error:
        return fail(command, f"{error.name} is not installed; pip install 'plaudit[{extra}]'", 2)
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, _HasExitCode):
            raise
        return fail(command, str(error), error.exit_code)


def fail(command: str, message: str, exit_code: int) -> int:
    """Print an error as one line; returns the exit code."""
    print(f"{command}: error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code
