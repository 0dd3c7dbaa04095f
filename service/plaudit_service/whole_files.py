"""Directories that are there whole or not at all: written beside their place, then renamed."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory that takes the name `path` when the block ends well, and vanishes otherwise.

    Nothing is forced to the disk: a bundle's hashes tell what a crash of the machine has cut.

    Args:
        path: where it belongs; its parents are made.
        replace: whether a directory that is there already gives way; else it stays, unless it is empty.

    Raises:
        OSError: it cannot be made or renamed; something that stays is at its place.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # others may be making the same one
    aside.mkdir(parents=True)
    old = aside.with_suffix(".old")
    try:
        yield aside
        if replace and path.exists():
            path.rename(old)
        try:
            aside.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
