"""A bundle on the Hugging Face hub becomes a directory of plain files here. Knows nothing of what is in the graph."""

import os
import re
import shutil
from pathlib import Path

from plaudit_service.bundles.bundle import MANIFEST, read_manifest
from plaudit_service.errors import BundleError, NotExported
from plaudit_service.whole_files import whole_directory

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")


def local_directory(source: str) -> Path:
    """Where a bundle is: a directory as it is, a hub id (`org/name` or `org/name@revision`) downloaded.

    Only the files that the manifest names are fetched, all of one commit. Endpoint, cache, token and offline mode are
    those of huggingface_hub: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. The hashes are verified when the bundle is
    loaded.

    Raises:
        BundleError: there is no such directory, and nothing with that id can be downloaded from the hub.
        NotExported: there is a checkpoint, or a repository of the hub that holds no bundle.
    """
    match = _HUB_ID.fullmatch(source)
    try:
        if Path(source).exists() or match is None:
            if _is_checkpoint(Path(source)):
                raise _not_exported(source)
            return Path(source)
    except OSError as error:  # its name is too long
        raise BundleError(f"bundle {source}: cannot be read ({error.strerror})") from error
    try:
        return _download(match["repo"], match["revision"])
    except BundleError:
        raise
    except ModuleNotFoundError as error:
        raise BundleError(
            f"bundle {source}: no such directory; for a bundle on the hub: pip install {error.name}"
        ) from error
    except Exception as error:  # the hub's client raises classes of its own and of its HTTP library
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BundleError(
            f"bundle {source}: no such directory, and it cannot be downloaded from the hub: {reason}"
        ) from error


def _is_checkpoint(directory: Path) -> bool:
    names = ("config.json", "adapter_config.json")
    return not (directory / MANIFEST).exists() and any((directory / name).is_file() for name in names)


def _not_exported(source: str) -> NotExported:
    return NotExported(
        f"bundle {source}: holds no {MANIFEST}; make a bundle of the checkpoint with "
        f"`plaudit-export checkpoint {source} BUNDLE`"
    )


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        cached = Path(hf_hub_download(repo, MANIFEST, revision=revision))
    except EntryNotFoundError as error:
        # Where the hub is not asked, its cache knows what was not there when it was.
        unknown = try_to_load_from_cache(repo, MANIFEST, revision=revision) is not _CACHED_NO_EXIST
        if isinstance(error, LocalEntryNotFoundError) and unknown:
            raise
        raise _not_exported(repo if revision is None else f"{repo}@{revision}") from error
    commit = cached.parent.name  # every file of the same commit, also when a branch moves in between
    manifest = read_manifest(cached)
    directory = Path(constants.HF_HOME) / "plaudit" / repo.replace("/", "--") / commit
    if directory.is_dir():
        return directory
    names = [*manifest.scoring.sha256, *manifest.sha256]
    files = [cached, *(Path(hf_hub_download(repo, name, revision=commit)) for name in names)]
    try:
        with whole_directory(directory) as aside:
            for file in files:
                _put(file.resolve(), aside / file.name)
    except OSError:
        if not directory.is_dir():  # else another process was quicker
            raise
    return directory


def _put(file: Path, place: Path) -> None:
    """The hub's cache is made of links, and a bundle of plain files; a hard link takes no room."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
