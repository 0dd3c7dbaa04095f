"""What every network of a run has in common: loaded from a directory, always deterministic, made of layers."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from plaudit_ppo.errors import CheckpointError, one_line

_Module = TypeVar("_Module", bound=nn.Module)


def load_pretrained(auto: Any, path: str | Path, what: str, **options: Any) -> Any:  # transformers is untyped
    """What a class of transformers makes of a checkpoint directory; no code of the checkpoint is run.

    Args:
        auto: the class.
        path: the directory.
        what: how messages name it.
        options: for `from_pretrained`.

    Raises:
        CheckpointError: the directory is missing or cannot be loaded.
    """
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(
            f"{what}: {path} has no config.json; give the directory of a transformers checkpoint, or a hub id"
        )
    try:
        return auto.from_pretrained(path, trust_remote_code=False, local_files_only=True, **options)
    except Exception as error:  # a checkpoint comes from outside; what reads it has exception types of its own
        remedy = "it needs config.json, *.safetensors and tokenizer files"
        if sys.flags.optimize > 1:
            remedy = "transformers reads docstrings: run Python without -OO (PYTHONOPTIMIZE=2), which strips them"
        raise CheckpointError(f"{what}: {path} cannot be loaded ({one_line(error)}); {remedy}") from error


def refuse_own_code(auto: Any, path: str | Path, what: str) -> None:
    """Refuses a checkpoint whose config names code of its own for a class: transformers' class would take its place.

    Args:
        auto: the class by which it is loaded.
        path: the checkpoint's directory.
        what: how messages name it.

    Raises:
        CheckpointError: it does.
    """
    try:
        named = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["auto_map"][auto.__name__]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # names none, or the loading says what is wrong
    raise CheckpointError(
        f"{what}: {path}: auto_map of its config names {named} for {auto.__name__}: custom code, which is "
        "never run; if transformers' own class computes the same, set builtin_class = true"
    )


def save_network(model: PreTrainedModel, directory: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a network with another state than its own: safetensors, and a config that names the state's type.

    Args:
        model: computes perhaps in another type than what is written.
        directory: made if missing.
        state: of the whole network.
    """
    model.save_pretrained(directory, state_dict=dict(state))
    written = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), model.dtype)
    if written != model.dtype:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        config.dtype = written
        config.save_pretrained(directory)


def disable_dropout(model: _Module) -> _Module:
    """The same model, always deterministic: evaluation mode, and every dropout module at 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def stored_frozen(model: nn.Module, parameter: nn.Parameter, name: str, precision: str) -> Tensor:
    """The weights of a parameter that is not trained, in the type that they are kept in.

    What transformers keeps in float32 whatever it is told (`_keep_in_fp32_modules_strict`) stays so.

    Args:
        model: that it belongs to.
        parameter: of any type.
        name: within the model.
        precision: "float32" or "bfloat16".
    """
    always = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    is_kept = precision == "float32" or any(part in name.split(".") for part in always)
    return parameter.detach() if is_kept else parameter.detach().to(torch.bfloat16)


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a network, as its class in transformers names them; an inner one before the one around it."""
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names][::-1]
