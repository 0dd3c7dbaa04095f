"""Bundles that are exported once and kept, each in a folder named by everything that could make it another bundle.

Knows nothing of how a checkpoint is exported.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plaudit_export.errors import ExportError, SourceError
from plaudit_export.identity import Identity, identify
from plaudit_export.versions import versions
from plaudit_service.bundles.bundle import MANIFEST, sha256_of

Say = Callable[[str], None]

_LOCK = "lock"
_BUNDLE = "bundle"
_MAX_NAME_CHARS = 80


def cached_bundle(
    source: str,
    options: Mapping[str, Any],
    export: Callable[[str, Path], None],
    *,
    cache: Path | None = None,
    say: Say = lambda _: None,
) -> Path:
    """The bundle of a checkpoint, exported where it is not there yet: by one process, while the others wait.

    It is there whole or not at all; what a killed export has left is removed by the next one. A bundle that is there
    is neither locked nor verified: who loads it does that.

    Args:
        source: a directory, or a hub id.
        options: of the export, JSON; a path stands for the content of its file.
        export: makes the bundle of a source as the directory that it gets.
        cache: None: `plaudit/bundles` in `$XDG_CACHE_HOME`, or in `~/.cache`.
        say: called with a line before what may take long.

    Raises:
        SourceError: there is no such checkpoint, a file of the options cannot be read, or the cache not be written.
        ExportError: the checkpoint was changed while it was exported.
    """
    wanted = identify(source)
    folder = (_default_cache() if cache is None else _expanded(cache)) / _folder_name(wanted, options)
    bundle = folder / _BUNDLE
    if not _is_there(bundle):
        with _locked(folder, say):
            if not _is_there(bundle):  # else the one that was waited for has made it
                _make(bundle, wanted, export)
                return bundle
    say(f"using {bundle}, which was exported before")
    return bundle


def _make(bundle: Path, wanted: Identity, export: Callable[[str, Path], None]) -> None:
    for left in bundle.parent.iterdir():
        if left.name != _LOCK:
            shutil.rmtree(left)
    aside = bundle.with_name("unfinished")
    export(wanted.source, aside)
    if identify(wanted.source).content != wanted.content:
        raise ExportError(
            f"{wanted.source}: was changed while it was exported; wait until all its files are written, then "
            "export it again"
        )
    aside.rename(bundle)


def _expanded(cache: Path) -> Path:
    try:
        return cache.expanduser().absolute()
    except RuntimeError as error:
        raise SourceError(f"--cache {cache}: cannot be written ({error}); choose another directory") from error


def _default_cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plaudit" / "bundles"
    except RuntimeError as error:
        raise SourceError("there is no home directory for the cache; give a directory with --cache") from error


def _folder_name(wanted: Identity, options: Mapping[str, Any]) -> str:
    """The checkpoint's name, for people, and a hash of all that could make another bundle of it."""
    key = {
        "checkpoint": wanted.content,
        "options": {name: _as_json(value) for name, value in options.items()},
        "versions": versions(*(["peft"] if wanted.is_adapter else [])),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '--', wanted.name)[:_MAX_NAME_CHARS]}-{digest}"


def _as_json(value: Any) -> Any:
    if not isinstance(value, Path):
        return value
    try:
        return sha256_of(value)
    except OSError as error:
        raise SourceError(f"{value}: cannot be read ({error.strerror})") from error


def _is_there(bundle: Path) -> bool:
    return (bundle / MANIFEST).is_file()


@contextmanager
def _locked(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock, which the kernel gives back however this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a")
    except OSError as error:
        raise SourceError(
            f"{folder}: cannot be written ({error.strerror}); give another directory with --cache"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which exports the same checkpoint into {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
