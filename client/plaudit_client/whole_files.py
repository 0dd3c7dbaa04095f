"""Files and directories that are there whole or not at all, also after a crash or kill -9.

Each is written beside its place, forced to the disk, and renamed. One process at a time writes in a folder.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".unfinished-"


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the name `path` when the block ends well, and vanishes otherwise.

    A directory that is there already gives way then; its parents are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(_UNFINISHED + path.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        for folder, _, files in os.walk(unfinished):
            for name in files:
                _force(Path(folder) / name)
            _force(Path(folder))
        old = _set_aside(path) if path.exists() else None
        try:
            unfinished.rename(path)
        except OSError:
            if old is not None:
                old.rename(path)
            raise
        _force(path.parent)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Make a file, or replace one, in one step."""
    unfinished = path.with_name(_UNFINISHED + path.name)
    unfinished.write_text(text, encoding="utf-8")
    put_in_place(unfinished, path)


def put_in_place(finished: Path, path: Path) -> None:
    """Give a file that is written another name in its folder, in one step; a file of that name gives way."""
    _force(finished)
    finished.replace(path)


def remove_directory(path: Path) -> None:
    """Remove a directory, if it is there, so that no part of it is ever seen under its name."""
    if path.exists():
        shutil.rmtree(_set_aside(path))


def remove_unfinished(folder: Path) -> None:
    """Remove the directories that a killed process has left in a folder."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)


def _set_aside(path: Path) -> Path:
    """Rename a directory that is to be removed; returns where it is."""
    leaving = path.with_name(f"{_UNFINISHED}removed-{path.name}")
    shutil.rmtree(leaving, ignore_errors=True)
    path.rename(leaving)
    return leaving


def _force(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
