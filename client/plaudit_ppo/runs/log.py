"""The log files of a run: a JSON object for each iteration."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from plaudit_client.whole_files import write_file
from plaudit_ppo.errors import CheckpointError

Metrics = Mapping[str, float | None]


class RunLog:
    """A JSONL file whose lines have an `iteration`; what is undefined is null, never NaN.

    Args:
        path: made anew, or continued; None: nothing is written, as in all processes but the first.
        done: iterations that a continued run has behind it; lines of later ones are removed.
    """

    def __init__(self, path: Path | None, *, done: int = 0) -> None:
        self._file: TextIO | None = None
        if path is None:
            return
        kept = [line for line in read_log(path) if line["iteration"] <= done] if done else []
        write_file(path, "".join(map(_to_line, kept)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a line, with the operating system before this returns."""
        if self._file is not None:
            self._file.write(_to_line(record))
            self._file.flush()

    def force(self) -> None:
        """Returns when everything is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _to_line(record: Mapping[str, Any]) -> str:
    line = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that was cut by kill -9 is left out, and a missing file is empty.

    Raises:
        CheckpointError: another line is not of an iteration.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    try:
        records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not the log of a run ({error}); choose another directory") from error
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or type(record.get("iteration")) is not int:
            raise CheckpointError(
                f"{path}: not the log of a run (line {number} has no iteration); choose another directory"
            )
    return records
