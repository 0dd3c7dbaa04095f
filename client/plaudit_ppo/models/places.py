"""Where a network's checkpoint is: a directory as it is, or a hub id, downloaded. Does not look into the files."""

import re
from pathlib import Path

from plaudit_ppo.errors import CheckpointError, one_line

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def pin(source: str, what: str) -> str:
    """A directory as it is named; a hub id, `org/name` or `org/name@revision`, with the commit that it has now.

    The checkpoint is downloaded, so that whoever asks for the commit finds it.

    Args:
        source: either.
        what: how messages name it.

    Raises:
        CheckpointError: it is neither.
    """
    directory = local_directory(source, what)
    match = _HUB_ID.fullmatch(source)
    return source if match is None or Path(source).is_dir() else f"{match['repo']}@{directory.name}"


def local_directory(source: str, what: str) -> Path:
    """Where the files of a checkpoint are: a directory as it is; a hub id downloaded, without pickles and code.

    Endpoint, cache, token and offline mode are huggingface_hub's: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.

    Raises:
        CheckpointError: it is neither.
    """
    match = _at_hub(source, what)
    if match is None:
        return Path(source)
    from huggingface_hub import snapshot_download

    commit = config_directory(source, what).name
    try:
        return Path(
            snapshot_download(match["repo"], revision=commit, allow_patterns=_DOWNLOADED, ignore_patterns=["*/*"])
        )
    except Exception as error:  # the hub's client raises classes of its own and of its HTTP library
        raise _not_to_be_had(source, what, error) from error


def config_directory(source: str, what: str) -> Path:
    """As `local_directory`, but of a hub id only the config is downloaded.

    Raises:
        CheckpointError: it is neither.
    """
    match = _at_hub(source, what)
    if match is None:
        return Path(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(match["repo"], "config.json", revision=match["revision"])).parent
    except LocalEntryNotFoundError as error:  # the hub was not reached
        raise _not_to_be_had(source, what, error) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{what}: {source}: has no config.json; give the id of a Hugging Face checkpoint"
        ) from error
    except Exception as error:  # as above
        raise _not_to_be_had(source, what, error) from error


def hub_commit(source: str | None) -> tuple[str, str] | None:
    """The repository and the commit that a pinned hub id names; None: it is none."""
    match = _HUB_ID.fullmatch(source or "")
    if match is None or not _COMMIT.fullmatch(match["revision"] or ""):
        return None
    return match["repo"], match["revision"]


def keep_commit(now: str | None, before: str | None) -> str | None:
    """What a resumed run takes: the commit that it began with, unless another commit or place is named.

    Args:
        now: a directory or a hub id.
        before: likewise, as `pin` gave it when the run began.
    """
    pinned, match = hub_commit(before), _HUB_ID.fullmatch(now or "")
    is_same = pinned is not None and match is not None and match["repo"] == pinned[0] and hub_commit(now) is None
    return before if is_same else now


def _at_hub(source: str, what: str) -> re.Match[str] | None:
    """The parts of a hub id; None for what is to be found here: a path that is there, or cannot be a hub id."""
    try:
        path = Path(source)
        if path.exists():
            return None
    except (OSError, ValueError) as error:  # too long, NUL
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{what}: {source}: cannot be read ({reason})") from error
    return _HUB_ID.fullmatch(source)


def _not_to_be_had(source: str, what: str, error: Exception) -> CheckpointError:
    reason = one_line(error)
    return CheckpointError(f"{what}: {source}: no such directory, and it cannot be downloaded from the hub: {reason}")
