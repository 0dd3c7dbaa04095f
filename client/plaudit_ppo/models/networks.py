"""What every network of a run has in common: loaded from a directory, always deterministic, made of layers."""

import json
import sys
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

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
        f"{what}: {path}: auto_map of its config names {named} for {auto.__name__}: code of its own, which "
        "is never run; if transformers' own class computes the same, say so with builtin_class = true"
    )


def disable_dropout(model: _Module) -> _Module:
    """The same model, always deterministic: evaluation mode, and every dropout module at 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a network, as its class in transformers names them; an inner one before the one around it."""
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names][::-1]
