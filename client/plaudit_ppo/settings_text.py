"""The settings of a run as text: TOML files, `--set NAME=VALUE`, the help. What a setting may be is in `config`."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from plaudit_ppo.config import PPOConfig, describe_unknown, setting_schemas, shown
from plaudit_ppo.errors import ConfigError

# The parts of a settings file, by the first setting of each.
_HEADINGS = {
    "policy": "What goes in and out",
    "iterations": "Rollouts",
    "label_column": "Scores",
    "kl_coef": "Rewards and advantages",
    "epochs": "Losses and critic",
    "lora_rank": "LoRA and optimizer",
    "precision": "Precision, memory, several processes",
    "checkpoint_every": "Checkpoints, samples, metrics",
    "max_masked_share": "Guards and seed",
}


def load_config(path: str | Path, assignments: Sequence[str] = ()) -> PPOConfig:
    """A PPOConfig from a TOML file.

    Args:
        path: of the file.
        assignments: NAME=VALUE each, which replace what the file says.

    Raises:
        ConfigError: the file is missing, is not TOML, or has an unknown or bad setting; the message names the file.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); --config takes a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error}); see docs/ppo.md for an example") from error
    assigned = read_assignments(assignments)
    try:
        return PPOConfig(**settings | assigned)
    except ConfigError as error:
        where = f"{path} with --set" if any(str(error).startswith(name) for name in assigned) else path
        raise ConfigError(f"{where}: {error}") from error


def read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Settings by their names, from NAME=VALUE each; the last one of a name counts.

    A string is taken as it stands, without quotes. A list is written as in TOML, or is one entry. "none" is no value,
    for a setting that may have none.

    Raises:
        ConfigError: a name is unknown, or there is no "=". Whether a value fits is for PPOConfig to say.
    """
    settings = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        name = name.strip()
        if name not in setting_schemas():
            raise ConfigError(f"--set {assignment}: {describe_unknown(name)}")
        if not sign:
            raise ConfigError(f"--set {assignment}: no value; write --set {name}=VALUE")
        settings[name] = _read_value(name, text.strip())
    return settings


def _read_value(name: str, text: str) -> Any:
    """The value that a text means for a setting; the text itself where it means none, which PPOConfig refuses."""
    schema, may_be_none = setting_schemas()[name], PPOConfig.__dataclass_fields__[name].default is None
    if text == "none" and may_be_none:
        return None
    try:
        if schema["type"] != "array":
            return _READERS[schema["type"]](text)
        if text.startswith("["):
            return tomllib.loads(f"entries = {text}")["entries"]
        return [_READERS[schema["items"]["type"]](text)]
    except (ValueError, KeyError):
        return text


_READERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": {"true": True, "false": False}.__getitem__,
}


def to_toml(config: PPOConfig) -> str:
    """The settings as TOML text that load_config reads back; a setting without a value stays a comment."""
    lines = []
    for spec in fields(config):
        value = getattr(config, spec.name)
        lines.append(f"# {setting_schemas()[spec.name]['description']}")
        lines.append(f"# {spec.name} =" if value is None else f"{spec.name} = {shown(value)}")
    return "\n".join(lines) + "\n"


def new_file(config: PPOConfig) -> str:
    """A file to begin with: every setting with its text and its default, as a comment unless `config` changes it."""
    lines = [
        "# Settings of a run of plaudit-ppo. A setting in a comment has its default; sources: docs/ppo-details.md.",
        "# Required: policy, prompts, scorer_urls. Relative paths start at the working directory.",
    ]
    for spec in fields(PPOConfig):
        if spec.name in _HEADINGS:
            lines += ["", f"# {_HEADINGS[spec.name]}"]
        value = getattr(config, spec.name)
        is_default = value == spec.default
        shown_value = "" if value is None else f" {shown(value)}"
        lines += ["", f"# {_described(spec.name)}", f"{'# ' if is_default else ''}{spec.name} ={shown_value}"]
    return "\n".join(lines) + "\n"


def changed_settings(before: PPOConfig, now: PPOConfig) -> list[str]:
    """Each setting that differs, as "name: before -> now"."""
    values = ((spec.name, getattr(before, spec.name), getattr(now, spec.name)) for spec in fields(PPOConfig))
    return [f"{name}: {shown(old)} -> {shown(new)}" for name, old, new in values if old != new]


def settings_help() -> str:
    """One line per setting: name, default, meaning; for `--help`."""
    return "\n".join(
        f"  {spec.name} = {shown(spec.default)}\n      {_described(spec.name)}" for spec in fields(PPOConfig)
    )


def _described(name: str) -> str:
    schema = setting_schemas()[name]
    choices = f" (one of {', '.join(schema['enum'])})" if "enum" in schema else ""
    return f"{schema['description']}{choices}"
