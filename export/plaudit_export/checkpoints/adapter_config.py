"""Which model an adapter (PEFT) changes, by its config. Needs neither torch nor peft."""

import json
from pathlib import Path
from typing import Any

from plaudit_export.errors import SourceError

CONFIG = "adapter_config.json"


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds a PEFT adapter."""
    return (directory / CONFIG).is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of an adapter's config.

    Raises:
        SourceError: it cannot be read, or names no base model.
    """
    try:
        fields = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{directory}: its {CONFIG} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise SourceError(f"{directory}: its {CONFIG} is no JSON object")
    if not fields.get("base_model_name_or_path"):
        raise SourceError(f"{directory}: its {CONFIG} names no base model (base_model_name_or_path)")
    return fields


def base_of(directory: Path, base: str) -> str:
    """Where the base model is: a path as it is or from the adapter's directory on, else a hub id.

    Raises:
        SourceError: it is an adapter itself.
    """
    path = directory / Path(base).expanduser()
    if not path.is_dir():
        return base
    if is_adapter(path):
        raise SourceError(f"{directory}: its base model {base} is an adapter too; merge that one first")
    return str(path)
