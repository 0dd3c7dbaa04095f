"""What can go wrong in an export; the class owns the exit code of the command.

ExportError             what the user gave was right, but the export failed    exit 1
├── ParityError         a served score is not the checkpoint's own             exit 1
└── SourceError         what the user gave cannot be exported                  exit 2
    └── RuleError       preference pairs speak clearly for another text rule   exit 2
"""

from typing import ClassVar


class ExportError(Exception):
    """The export failed; the text is one clear line for the user."""

    exit_code: ClassVar[int] = 1


class ParityError(ExportError):
    """A served score is further from its reference than the tolerance; `table` shows every golden text."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message, table)
        self.table = table

    def __str__(self) -> str:
        return str(self.args[0])


class SourceError(ExportError):
    """What the user gave is missing, malformed or not allowed."""

    exit_code: ClassVar[int] = 2


class RuleError(SourceError):
    """Preference pairs speak clearly for another rule than the one chosen; `table` shows every rule."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message, table)
        self.table = table

    def __str__(self) -> str:
        return str(self.args[0])


def first_line(error: BaseException) -> str:
    """The first line that says something, or the class, of what caused an error in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
