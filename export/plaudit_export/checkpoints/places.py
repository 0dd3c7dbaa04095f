"""Where a checkpoint is: a directory as it is, or a hub id, downloaded. Does not look into the files."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from plaudit_export.checkpoints.adapter_config import CONFIG
from plaudit_export.errors import SourceError

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w./-]*))?")
_CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is: its directory, its id, and the commit of the hub that it was downloaded from."""

    directory: Path
    id: str
    revision: str | None = None


def locate(source: str) -> Place:
    """A directory as it is; `org/name` or `org/name@revision` downloaded from the hub.

    Raises:
        SourceError: it is neither.
    """
    return _locate(source, _download)


def look_up(source: str) -> Place:
    """As `locate`, but of a hub id only the config is downloaded: enough to know the commit, and an adapter's base.

    Raises:
        SourceError: it is neither, or no checkpoint.
    """
    return _locate(source, _download_config)


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a directory that make the checkpoint, by name."""
    patterns = [*_CHECKPOINT_FILES, "additional_chat_templates/*.jinja"]
    return sorted(file for pattern in patterns for file in directory.glob(pattern) if file.is_file())


def _locate(source: str, download: Callable[[str, str | None], Path]) -> Place:
    directory = Path(source).expanduser()
    if directory.is_dir():
        return Place(directory, directory.resolve().name)
    match = _HUB_ID.fullmatch(source)
    if directory.exists() or match is None:
        what = "is not a directory" if directory.exists() else "no such directory"
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


def _not_to_be_had(source: str, error: Exception) -> SourceError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SourceError(f"{source}: no such directory, and it cannot be had from the hub: {reason}")


def _download(repo: str, revision: str | None) -> Path:
    """All that a checkpoint is made of, of one commit; no pickles, no code, no other formats of the weights."""
    patterns = _CHECKPOINT_FILES
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))


def _download_config(repo: str, revision: str | None) -> Path:
    """The config of the adapter or, where there is none, of the model."""
    try:
        return Path(hf_hub_download(repo, CONFIG, revision=revision)).parent
    except EntryNotFoundError:  # also where the hub is not asked, and the cache does not have it
        return Path(hf_hub_download(repo, "config.json", revision=revision)).parent
