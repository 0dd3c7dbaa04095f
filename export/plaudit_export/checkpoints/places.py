"""Where a checkpoint is: a directory as it is, or a hub id, downloaded. Does not look into the files."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

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
    """A directory as it is; `org/name` or `org/name@revision` downloaded from the hub."""
    directory = Path(source).expanduser()
    if directory.is_dir():
        return Place(directory, directory.resolve().name)
    match = _HUB_ID.fullmatch(source)
    if directory.exists() or match is None:
        what = "is not a directory" if directory.exists() else "no such directory"
        raise SourceError(f"{source}: {what}; give the directory that holds config.json and model.safetensors")
    snapshot = _download(source, match["repo"], match["revision"])
    return Place(snapshot, match["repo"], snapshot.name)


def _download(source: str, repo: str, revision: str | None) -> Path:
    """All that a checkpoint is made of, of one commit; no pickles, no code, no other formats of the weights."""
    try:
        snapshot = snapshot_download(repo, revision=revision, allow_patterns=_CHECKPOINT_FILES, ignore_patterns=["*/*"])
    except Exception as error:  # the hub's client raises classes of its own and of its HTTP library
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SourceError(f"{source}: no such directory, and it cannot be had from the hub: {reason}") from error
    return Path(snapshot)


def check_directory(directory: Path) -> None:
    """Names the usual mistakes before transformers words them."""
    if not (directory / "config.json").is_file():
        raise SourceError(f"{directory}: has no config.json; give the directory of a Hugging Face checkpoint")
    if any(directory.glob("*.safetensors")):
        return
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise SourceError(
            f"{directory}: holds pickled weights only, which are never loaded because a pickle can run code; "
            "save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise SourceError(f"{directory}: has no *.safetensors file")
