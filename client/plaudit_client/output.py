"""Where `plaudit-score` writes: standard output, or a file that takes its name when it is whole and can be continued.

Next to OUTPUT.part, where the lines are, OUTPUT.part.journal says of what they are the scores: first the options, then
after each chunk how many input lines it covers, their digest, and the reward model. Knows nothing of the network.
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from plaudit_client.errors import InvalidArgument
from plaudit_client.whole_files import put_in_place


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        line: Number of the last input line whose scores are written.
        digest: Of the input up to it.
        model: That computed them.
        fingerprint: Likewise.
        engine: Likewise.
    """

    line: int
    digest: str
    model: str | None
    fingerprint: str | None
    engine: str | None


class Output:
    """The output of one run; a context manager.

    Args:
        name: `-` for standard output, else a path.
        options: What the scores depend on; a run is only continued with the same.
        resume: Continue an interrupted run, if there is one.

    Attributes:
        progress: Of the interrupted run that is continued; None where there is none.

    Raises:
        InvalidArgument: The file cannot be written; there is an interrupted run and `resume` is off, or it was one with
            other options.
    """

    def __init__(self, name: str, options: dict[str, Any], *, resume: bool) -> None:
        self.progress: Progress | None = None
        self._name = name
        self._options = options
        self._file: TextIO = sys.stdout
        self._journal: TextIO | None = None
        self._target = Path(name).resolve()
        self._part = Path(f"{self._target}.part")
        self._journal_path = Path(f"{self._part}.journal")
        self._wrote_anything = False
        is_stream = name == "-" or (self._target.exists() and not self._target.is_file())  # such as /dev/null
        if is_stream and resume:
            raise InvalidArgument(f"--resume: output to {name} cannot be continued; give a file with -o")
        try:
            if is_stream and name != "-":
                self._file = self._target.open("w", encoding="utf-8")
            elif not is_stream:
                self._open_part(resume)
        except OSError as error:
            self._forget_beginning()
            raise InvalidArgument(f"{name}: cannot be written: {error.strerror}") from error

    def _forget_beginning(self) -> None:
        """Leave nothing of a run that could not even begin, such as on a full disk."""
        if self._journal is not None and self.progress is None:
            with contextlib.suppress(OSError):
                self._journal.close()
            self._part.unlink(missing_ok=True)
            self._journal_path.unlink(missing_ok=True)

    def _open_part(self, resume: bool) -> None:
        if self._part.exists() and not resume:
            raise InvalidArgument(
                f"{self._part}: left by an interrupted run; continue that run with --resume, or delete this file to "
                "start over"
            )
        is_left = self._part.exists()
        self._journal = self._journal_path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidArgument(
                f"{self._part}: another run is writing this file; wait until that run ends"
            ) from error
        if is_left:
            self._read_journal()
        if self.progress is None:
            self._part.write_bytes(b"")
            self._journal.truncate(0)
            self._journal.write(json.dumps(self._options) + "\n")
            self._journal.flush()
        else:
            self._wrote_anything = True
            _cut_unfinished_line(self._part)
            _cut_unfinished_line(self._journal_path)
        self._file = self._part.open("a", encoding="utf-8")

    def _read_journal(self) -> None:
        try:
            lines = self._journal_path.read_text(encoding="utf-8").splitlines(keepends=True)
            options, *records = [json.loads(line) for line in lines if line.endswith("\n")]
            progress = Progress(**records[-1]) if records else None
        except (OSError, ValueError, TypeError) as error:
            raise InvalidArgument(
                f"{self._journal_path}: this file is missing, so the run cannot be continued; delete {self._part} to "
                "start over"
            ) from error
        if options != self._options:
            was = ", ".join(f"{name} {value}" for name, value in options.items())
            raise InvalidArgument(
                f"{self._part}: left by a run with other options ({was}); give the same options, or delete this file "
                "to start over"
            )
        self.progress = progress

    def written_lines(self) -> Iterator[dict[str, Any]]:
        """What the interrupted run has written."""
        if self.progress is None:
            return
        with self._part.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def write(self, lines: Sequence[str], progress: Progress) -> None:
        """Write the scores of the input up to `progress`."""
        self._file.writelines(lines)
        if self._journal is not None:
            self._file.flush()
            self._wrote_anything = True
            self._journal.write(json.dumps(asdict(progress)) + "\n")
            self._journal.flush()

    @property
    def can_be_resumed(self) -> bool:
        """Whether something was written that another run may continue."""
        return self._journal is not None and self._wrote_anything

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is sys.stdout:
            if error is None:
                sys.stdout.flush()
            return
        self._file.close()
        if self._journal is None:
            return
        self._journal.close()
        if error is None:
            put_in_place(self._part, self._target)
        elif not self._wrote_anything:
            self._part.unlink(missing_ok=True)
        if not self._part.exists():
            self._journal_path.unlink(missing_ok=True)


def _cut_unfinished_line(path: Path) -> None:
    """A process that is killed may leave half a line at the end."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
