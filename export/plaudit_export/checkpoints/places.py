"""Where a checkpoint is: a directory as it is, or a hub id, downloaded. Does not look into the files."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from plaudit_export.checkpoints.config_files import ADAPTER_CONFIG, is_adapter
from plaudit_export.errors import SourceError
from plaudit_export.recipes.on_disk import MODEL_CARD

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w./-]*))?")
_CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_DOWNLOADED = [*_CHECKPOINT_FILES, MODEL_CARD]


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is.

    Attributes:
        directory: that holds its files.
        id: the hub id, or the directory's name.
        revision: the commit of the hub that it was downloaded from, None for a directory.
        left_out: names of the hub's files that were not downloaded; None: the hub cannot be asked.
    """

    directory: Path
    id: str
    revision: str | None = None
    left_out: tuple[str, ...] | None = ()


def locate(source: str) -> Place:
    """A directory as it is; `org/name` or `org/name@revision` downloaded from the hub.

    Raises:
        SourceError: it is neither.
    """
    place = _locate(source, _download)
    return place if place.revision is None else replace(place, left_out=_left_out(place.id, place.revision))


def look_up(source: str) -> Place:
    """As `locate`, but of a hub id only the config is downloaded: enough to know the commit, and an adapter's base.

    Raises:
        SourceError: it is neither, or no checkpoint.
    """
    return _locate(source, _download_config)


def base_of(adapter: Path, base: str) -> str:
    """Where an adapter's base model is: a path as it is or from the adapter's directory on, else a hub id.

    Raises:
        SourceError: it is an adapter itself.
    """
    path = _at(base, below=adapter)
    if path is None or not path.is_dir():
        return base
    if is_adapter(path):
        raise SourceError(f"{adapter}: its base model {base} is an adapter too; merge that one first")
    return str(path)


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a directory that make the checkpoint, by name."""
    patterns = [*_CHECKPOINT_FILES, "additional_chat_templates/*.jinja"]
    return sorted(file for pattern in patterns for file in directory.glob(pattern) if file.is_file())


def _locate(source: str, download: Callable[[str, str | None], Path]) -> Place:
    found = _at(source)
    if found is not None and found.is_dir():
        return Place(found, found.resolve().name)
    match = _HUB_ID.fullmatch(source)
    if found is not None or match is None:
        what = "no such directory" if found is None else "is not a directory"
        raise SourceError(f"{source}: {what}; give the directory that holds config.json and model.safetensors")
    try:
        snapshot = download(match["repo"], match["revision"])
    except LocalEntryNotFoundError as error:  # the hub was not reached
        raise _not_to_be_had(source, error) from error
    except EntryNotFoundError as error:
        raise SourceError(f"{source}: has no config.json; give the id of a Hugging Face checkpoint") from error
    except Exception as error:  # the hub's client raises classes of its own and of its HTTP library
        raise _not_to_be_had(source, error) from error
    return Place(snapshot, match["repo"], snapshot.name)


def _at(name: str, below: Path = Path()) -> Path | None:
    """What is at a path, absolute or from `below` on.

    Raises:
        SourceError: nothing can be there.
    """
    try:
        path = below / Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, the home of nobody
        raise SourceError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _not_to_be_had(source: str, error: Exception) -> SourceError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SourceError(f"{source}: no such directory, and it cannot be downloaded from the hub: {reason}")


def _download(repo: str, revision: str | None) -> Path:
    """A checkpoint and its card, of one commit; no pickles, no code, no other formats of the weights."""
    return Path(snapshot_download(repo, revision=revision, allow_patterns=_DOWNLOADED, ignore_patterns=["*/*"]))


def _left_out(repo: str, commit: str) -> tuple[str, ...] | None:
    try:
        names = HfApi().list_repo_files(repo, revision=commit)
    except Exception:  # noqa: BLE001 - as above; without the hub its cache is all that is known
        return None
    return tuple(name for name in names if not any(fnmatch(name, pattern) for pattern in _DOWNLOADED))


def _download_config(repo: str, revision: str | None) -> Path:
    """The config of the adapter or, where there is none, of the model."""
    try:
        return Path(hf_hub_download(repo, ADAPTER_CONFIG, revision=revision)).parent
    except EntryNotFoundError:  # also where the hub is not asked, and the cache does not have it
        return Path(hf_hub_download(repo, "config.json", revision=revision)).parent
