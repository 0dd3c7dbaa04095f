"""What the JSON files of a checkpoint say: fields of the types that they are read as. Needs neither torch nor peft."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plaudit_export.errors import SourceError

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER_CONFIG = "adapter_config.json"

_Rule = tuple[Callable[[Any], bool], str]
_TEXT: _Rule = (lambda value: isinstance(value, str)), "a text"
_TEXTS: _Rule = (
    (lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value)),
    "a list of texts",
)
_COUNT: _Rule = (lambda value: isinstance(value, int)), "a whole number"
_NUMBER: _Rule = (lambda value: isinstance(value, int | float)), "a number"
_OBJECT: _Rule = (lambda value: isinstance(value, dict)), "an object"
_CODE: _Rule = (lambda value: isinstance(value, dict | list | str)), "an object, a list or a text"
# What is read of a file beside or before transformers and peft, which check what they read; null counts as not there.
_FIELDS = {
    CONFIG: {
        "architectures": _TEXTS,
        "auto_map": _CODE,
        "max_position_embeddings": _COUNT,
        "model_type": _TEXT,
        "pad_token_id": _COUNT,
        "value_head_prefix": _TEXT,
        "vocab_size": _COUNT,
    },
    TOKENIZER_CONFIG: {"added_tokens_decoder": _OBJECT, "auto_map": _CODE, "model_max_length": _NUMBER},
    ADAPTER_CONFIG: {"base_model_name_or_path": _TEXT, "peft_type": _TEXT, "revision": _TEXT, "task_type": _TEXT},
}


def read_fields(directory: Path, name: str) -> dict[str, Any]:
    """The JSON object of one of these files.

    Raises:
        SourceError: it cannot be read, is no object, or a field is of another type than it is read as.
    """
    try:
        fields = json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{directory}: its {name} cannot be loaded: {error}") from error
    if not isinstance(fields, dict):
        raise SourceError(f"{directory}: its {name} is not a JSON object")
    for field, (is_right, what) in _FIELDS[name].items():
        value = fields.get(field)
        if value is not None and not is_right(value):
            raise SourceError(f"{directory}: {field} of its {name} is {value!r}, not {what}; correct it")
    return fields


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds a PEFT adapter."""
    return (directory / ADAPTER_CONFIG).is_file()


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The fields of an adapter's config.

    Raises:
        SourceError: it cannot be read, or names no base model.
    """
    fields = read_fields(directory, ADAPTER_CONFIG)
    if not fields.get("base_model_name_or_path"):
        raise SourceError(f"{directory}: its {ADAPTER_CONFIG} names no base model (base_model_name_or_path)")
    return fields
