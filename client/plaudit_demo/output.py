"""The output directory: made anew, but only over a former one of the demo; and its JSON files."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plaudit_client.whole_files import write_file
from plaudit_demo.errors import OutputError

MARKER = ".plaudit-demo"


def prepare_output(path: Path) -> Path:
    """An empty directory with a marker in it, by which a later run knows that it may be replaced.

    Args:
        path: missing, an empty directory, or the output of a former run, whose content is deleted.

    Returns:
        The directory, links resolved.

    Raises:
        OutputError: it is something else, or cannot be written.
    """
    try:
        directory = path.expanduser().resolve()
        directory.mkdir(parents=True, exist_ok=True)
        content = list(directory.iterdir())
        if content and not (directory / MARKER).is_file():
            raise OutputError(
                f"--output {path}: holds files but no {MARKER}, so it is not an earlier demo and is not replaced; "
                "choose another directory"
            )
        (directory / MARKER).write_text("Made by plaudit-demo, which replaces this directory.\n", encoding="utf-8")
        for entry in content:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARKER:
                entry.unlink()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"--output {path}: cannot be written ({reason}); choose another") from error
    return directory


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object, indented, without NaN."""
    write_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Mapping[str, Any]:
    """The object of a file; empty where there is none."""
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one object per line."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_file(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one per line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
