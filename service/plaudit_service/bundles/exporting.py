"""A checkpoint becomes a bundle by `plaudit-export cache`, as a process of its own: the service imports no torch.

Knows nothing of checkpoints, and of where bundles are kept.
"""

import importlib.util
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from plaudit_service.bundles import hub
from plaudit_service.bundles.bundle import MANIFEST
from plaudit_service.command_line import say
from plaudit_service.errors import BundleError, ExportFailed, NotExported, SettingsError

EXPORTER = "plaudit-export"
_GRACE_S = 20.0


def bundle_directories(sources: Sequence[str], options: Sequence[str], cache: str) -> list[Path]:
    """Where the bundles are that shall be served; those of checkpoints are exported first, where they never were.

    Args:
        sources: Bundle directories, checkpoint directories, or hub ids of either (`org/name@revision`).
        options: Of `plaudit-export checkpoint`, as `append-eos` or `max-tokens=2048`, for every checkpoint.
        cache: Directory of exported bundles; "": that of `plaudit-export cache`.

    Raises:
        SettingsError: There are options, and nothing to export.
        BundleError: There is no such bundle or checkpoint, or it cannot be exported.
        ExportFailed: The export failed.
    """
    directories, num_exported = [], 0
    for source in sources:
        try:
            directories.append(hub.local_directory(source))
        except NotExported:
            num_exported += 1
            directories.append(_export(source, options, cache))
    if options and not num_exported:
        raise SettingsError(
            f"--export-options {options[0]}: nothing is exported, because all that is served are bundles; "
            "leave it out, or give the checkpoint"
        )
    return directories


def _export(source: str, options: Sequence[str], cache: str) -> Path:
    flags = [f"--{option.lstrip('-')}" for option in options]
    command = [_exporter(source), "cache", *flags, *(["--cache", cache] if cache else []), "--", source]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate()  # its progress goes to our standard error
    finally:
        _end(process)
    if process.returncode == 0:
        return Path(said.splitlines()[-1])
    if said:
        say(said.rstrip())
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise ExportFailed(
            f"bundle {source}: {EXPORTER} was ended by {name}; check that the machine has enough memory for it"
        )
    refused = (
        f"bundle {source}: cannot be exported; {EXPORTER} gives the reason above. An option that it names goes into "
        "--export-options without its --, as in --export-options recipe=trl"
    )
    raise BundleError(refused) if process.returncode == 2 else ExportFailed(refused)


def _end(process: "subprocess.Popen[str]") -> None:
    """What runs is asked to stop, and clears away what it has written so far."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _exporter(source: str) -> str:
    """The command of this environment, or else the first on PATH.

    Raises:
        BundleError: there is none. That of this environment counts only beside torch: every install brings the command.
    """
    beside = Path(sys.executable).with_name(EXPORTER)
    if beside.is_file() and importlib.util.find_spec("torch") is not None:
        return str(beside)
    found = shutil.which(EXPORTER)
    if found is None or Path(found) == beside:
        raise BundleError(
            f"bundle {source}: holds no {MANIFEST}, and a checkpoint has to be exported first: "
            f"pip install 'plaudit[export]'; or run `{EXPORTER} checkpoint {source} BUNDLE` elsewhere, and serve BUNDLE"
        )
    return found
