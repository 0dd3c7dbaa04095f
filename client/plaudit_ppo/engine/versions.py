"""The policy's weights as an engine reads them from a directory: one for each version, whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from plaudit_client.whole_files import remove_directory, remove_unfinished
from plaudit_ppo.models.lora import is_lora, save_adapter, save_merged
from plaudit_ppo.runs.directories import left_directory

_PREFIX = "version-"


def write_version(
    folder: Path, version: int, policy: PreTrainedModel, state: Mapping[str, Tensor], *, as_adapter: bool
) -> Path:
    """Writes what an engine is to load.

    Args:
        folder: of all versions.
        version: which one; one that is there already gives way.
        policy: whose weights they are.
        state: its whole state.
        as_adapter: the LoRA adapter alone, else all weights.

    Returns:
        The version's directory, absolute, since the engine has a working directory of its own.

    Raises:
        OutputError: it cannot be written.
    """
    path = version_path(folder, version)
    with left_directory(path) as directory:
        if as_adapter:
            save_adapter(policy, directory, state)
        else:
            _write_weights(directory, policy, state)
    return path


def version_path(folder: Path, version: int) -> Path:
    """Where a version is, or would be."""
    return folder.resolve() / f"{_PREFIX}{version:06d}"


def remove_other_versions(folder: Path, version: int) -> None:
    """Removes every version but one, and what a killed run has left of one."""
    for path in folder.glob(f"{_PREFIX}*"):
        if path != version_path(folder, version):
            remove_directory(path)
    remove_unfinished(folder)


def _write_weights(directory: Path, policy: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """All weights under the names of transformers' checkpoints, an adapter merged, tied ones each by itself.

    On the CPU, vLLM packs the output head once, and goes on with the old one where a reload brings none.

    Args:
        directory: made if missing.
        policy: whose weights they are.
        state: its whole state.
    """
    state = _untied(state)
    if is_lora(policy):
        save_merged(policy, directory, state)
    else:
        policy.save_pretrained(directory, state_dict=state)
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "tie_word_embeddings": False}, indent=2) + "\n", encoding="utf-8")


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, none of them one tensor with another."""
    seen: set[int] = set()
    untied: dict[str, Tensor] = {}
    for name, tensor in state.items():
        place = tensor.data_ptr()
        untied[name] = tensor.detach().clone() if place in seen else tensor.detach()
        seen.add(place)
    return untied
