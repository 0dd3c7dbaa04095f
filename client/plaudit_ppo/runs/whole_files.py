"""Files and directories that are there whole or not at all, also after a crash or kill -9."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from plaudit_ppo.errors import OutputError, one_line

_UNFINISHED = ".unfinished-"


def write_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Makes a directory, or replaces one, in one step: written beside it, forced to the disk, renamed.

    Args:
        path: the directory.
        write: writes the content into the empty directory that it is given.

    Raises:
        OutputError: it cannot be written; what is unfinished is removed.
    """
    unfinished = path.with_name(_UNFINISHED + path.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        for folder, _, files in os.walk(unfinished):
            for name in files:
                _force(Path(folder) / name)
            _force(Path(folder))
        remove_directory(path)
        unfinished.rename(path)
        _force(path.parent)
    except Exception as error:  # what writes models and tokenizers has exception types of its own
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OutputError(f"{path}: cannot be written ({one_line(error)}); resume the run once it can") from error


def try_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Writes what `write_directory` would, and removes it again.

    Raises:
        OutputError: it cannot be written.
    """
    trial = path.with_name(_UNFINISHED + path.name)
    shutil.rmtree(trial, ignore_errors=True)
    try:
        trial.mkdir(parents=True)
        write(trial)
    except Exception as error:  # see above
        raise OutputError(f"{path}: cannot be written ({one_line(error)})") from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Makes a file, or replaces one, in one step: written beside it, renamed."""
    unfinished = path.with_name(_UNFINISHED + path.name)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def remove_directory(path: Path) -> None:
    """Removes a directory, if it is there, so that no part of it is ever seen under its name."""
    if path.exists():
        leaving = path.with_name(f"{_UNFINISHED}removed-{path.name}")
        shutil.rmtree(leaving, ignore_errors=True)
        path.rename(leaving)
        shutil.rmtree(leaving)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process has left in a folder."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)


def _force(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
