"""The pages of docs/reference/ that say what the code declares: settings, metrics, errors, JSON.

They are committed, so that they can be read on GitHub. tests/test_reference.py compares each with the code, and
writes it after a change: `PLAUDIT_UPDATE_CONTRACT=1 .venv/bin/pytest tests/test_reference.py`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

import plaudit_client.errors
import plaudit_ppo.errors
import plaudit_service.errors
from plaudit_ppo.training.held_out import HELD_OUT_METRICS
from plaudit_ppo.training.metrics import METRICS
from plaudit_service.bundles import bundle
from plaudit_service.http import wire
from plaudit_service.items import ChatItem, Message, PromptItem, ScoreRequest, TextItem, TextPart, TokenItem
from plaudit_service.metrics import Metrics
from plaudit_service.settings import HEADINGS, Settings, environment_variable, flag, schemas, shown_default

_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
    "null": "null",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}


def settings() -> str:
    """Every setting of plaudit-serve."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for setting in fields(Settings):
        if setting.name in HEADINGS:
            rows = groups.setdefault(HEADINGS[setting.name], [])
        schema = schemas()[setting.name]
        default = shown_default(setting.default)
        rows.append(
            (
                _code(flag(setting.name)),
                default if default == "not set" else _code(default),
                _prose(schema["description"]),
                _type(schema.get("items", schema)),
                _code(environment_variable(setting.name)),
            )
        )
    header = ("flag", "default", "what", "values", "variable")
    return _page(
        "Settings of plaudit-serve",
        "`plaudit_service.settings`",
        "A flag wins over its variable. A setting that is true or false has two flags: `--console` and `--no-console`. "
        "[How to choose them](../service.md#settings). [The settings of the trainer](../ppo-reference.md#settings).",
        {heading: _table(header, rows) for heading, rows in groups.items()},
    )


def metrics() -> str:
    """Every metric of the service and of the trainer."""
    of_service = [
        (
            _code(metric._name + "_total" * (metric._type == "counter")),
            metric._type,
            ", ".join(map(_code, metric._labelnames)) or "none",
            _prose(metric._documentation),
        )
        for metric in vars(Metrics()).values()
        if isinstance(metric, MetricWrapperBase)
    ]
    header = ("metric", "meaning")
    return _page(
        "Metrics",
        "`plaudit_service.metrics`, `plaudit_ppo.training.metrics` and `plaudit_ppo.training.held_out`",
        "Units are seconds, bytes, tokens and nats. [Alerts and dashboard](../operations.md).",
        {
            "The service": "`GET /metrics` answers in Prometheus' text format.\n\n"
            + _table(("metric", "type", "labels", "what"), of_service),
            "A training run": "One JSON object for each iteration, a line of `log.jsonl`. A value that is undefined is "
            "`null`. An update\nthat was skipped, because no rollout has a score, has no metrics of an update.\n\n"
            + _table(header, _meanings(METRICS)),
            "An evaluation on held-out prompts": "One JSON object for each "
            "[evaluation](../ppo.md#held-out-evaluation), a line of `evaluations.jsonl`. It also has\n`iteration` (how "
            "many were done) and the list `scores`.\n\n" + _table(header, _meanings(HELD_OUT_METRICS)),
        },
    )


def errors() -> str:
    """Every problem of the service, and every error of client and trainer."""
    problems = [
        (str(kind.status), _code(f"urn:plaudit:{kind.slug}"), _summary(kind))
        for kind in _classes(plaudit_service.errors)
        if hasattr(kind, "slug")
    ]
    return _page(
        "Errors",
        "`plaudit_service.errors`, `plaudit_client.errors` and `plaudit_ppo.errors`",
        "Every command exits with 0 (done), 1 (what was given is right, and something failed), 2 (what was given is "
        "wrong) or\n130 (interrupted), and prints one line that says what is wrong.",
        {
            "Problems of the service": "A request that is refused as a whole gets `application/problem+json` (RFC "
            "9457) with these in `status` and `type`.\n[What else is refused](../scoring.md#problems).\n\n"
            + _table(("status", "type", "when"), problems),
            "Errors of the client": "In `plaudit_client.errors`; all are `PlauditError`. "
            "[When the client retries](../client.md).\n\n" + _errors(plaudit_client.errors),
            "Errors of the trainer": "In `plaudit_ppo.errors`; all are `PPOError`. "
            "[The guards and their settings](../ppo-reference.md#guards).\n\n" + _errors(plaudit_ppo.errors),
        },
    )


def bundle_json() -> str:
    """Every field of `bundle.json`."""
    models = (
        bundle.Manifest,
        bundle.Scoring,
        bundle.Head,
        bundle.SpecialToken,
        bundle.Steps,
        bundle.Normalization,
        bundle.Source,
        bundle.NormalizationSource,
    )
    return _page(
        "bundle.json",
        "`plaudit_service.bundles.bundle`",
        "[What else is in a bundle](../bundle.md). [What the rules do](../scoring.md#which-text-and-which-token).",
        _objects(models),
    )


def wire_json() -> str:
    """Every object of `POST /score`."""
    models = (
        ScoreRequest,
        TextItem,
        PromptItem,
        ChatItem,
        TokenItem,
        Message,
        TextPart,
        wire.ScoreAnswer,
        wire.ScoreResult,
        wire.ScoresAlong,
        wire.Problem,
    )
    return _page(
        "JSON of POST /score",
        "`plaudit_service.items` and `plaudit_service.http.wire`",
        "`GET /openapi.json` of a service says the same, and `GET /docs` shows it to try. [What the fields do]"
        "(../scoring.md).\nA request with a field that is not here is refused. An answer leaves out a field without a "
        "value, but for `score`.",
        _objects(models),
    )


PAGES = {
    "settings.md": settings,
    "metrics.md": metrics,
    "errors.md": errors,
    "bundle-json.md": bundle_json,
    "wire.md": wire_json,
}


def _page(title: str, sources: str, introduction: str, sections: Mapping[str, str]) -> str:
    links = " ·\n".join(f"[{heading}](#{_anchor(heading)})" for heading in sections)
    body = "".join(f"\n## {heading}\n\n{section}" for heading, section in sections.items())
    note = f"This page is made from {sources}; a test compares it with the code."
    return f"# {title}\n\nOn this page: {links}\n\n{introduction}\n\n{note}\n{body}"


def _anchor(heading: str) -> str:
    """As GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _errors(module: ModuleType) -> str:
    rows = [
        (_code(kind.__name__), _code(kind.__bases__[0].__name__), str(kind.exit_code), _summary(kind))
        for kind in _classes(module)
        if kind.__bases__[0] is not Exception
    ]
    return _table(("error", "is a", "exit", "when"), rows)


def _classes(module: ModuleType) -> list[Any]:
    """The classes of a module, in its order."""
    return [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]


def _objects(models: Iterable[type[BaseModel]]) -> dict[str, str]:
    return {model.__name__: f"{_summary(model)}\n\n{_fields(model)}" for model in models}


def _fields(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    rows = [
        (
            _code(name),
            _default(name, schema),
            _prose(field["description"]),
            _type(field),
        )
        for name, field in schema["properties"].items()
    ]
    return _table(("field", "default", "what", "values"), rows)


def _default(name: str, schema: Mapping[str, Any]) -> str:
    if name in schema.get("required", ()):
        return "required"
    default = schema["properties"][name].get("default")
    return "none" if default is None else _code(json.dumps(default))


def _type(schema: Mapping[str, Any]) -> str:
    """What a value may be, of JSON Schema."""
    match schema:
        case {"$ref": name} if name.endswith("/Status"):
            return "[status](../scoring.md#results)"
        case {"$ref": name} if not name.endswith("/JsonValue"):
            name = name.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": options} | {"oneOf": options}:
            return " or ".join(dict.fromkeys(_type(option) for option in options if option != {"type": "null"}))
        case {"enum": values}:
            return ", ".join(_code(str(value)) for value in values)
        case {"const": value}:
            return _code(str(value))
        case {"examples": values}:
            return ", ".join(map(_code, values))
        case {"type": "array", "items": of}:
            return f"list: {_type(of)}"
        case {"type": "object", "propertyNames": {"enum": names}}:
            return f"object of {', '.join(map(_code, names))}"
        case {"type": "object", "additionalProperties": dict() as of}:
            return f"object: name to {_type(of)}"
        case {"type": kind}:
            limits = [text.format(f"{schema[key]:,}") for key, text in _LIMITS.items() if key in schema]
            return ", ".join([_TYPES[kind], *limits])
    return "any JSON"


def _summary(kind: type) -> str:
    """The first paragraph of a docstring."""
    return _prose((kind.__doc__ or "").partition("\n\n")[0])


def _meanings(names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(_code(name), _prose(meaning)) for name, meaning in names.items()]


def _table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |\n" for cells in (header, *rows)]
    return "".join([lines[0], "|---" * len(header) + "|\n", *lines[1:]])


def _code(text: str) -> str:
    return f"`{text}`"


def _prose(text: str) -> str:
    """A text as a cell of a table: flags in code font, and nothing that Markdown would read as a sign of its own."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [_plain(part) for part in parts[::2]]
    return "`".join(parts).replace("|", r"\|")


def _plain(text: str) -> str:
    escaped = text.replace("*", r"\*").replace("<", "&lt;")
    return re.sub(r"--[a-z][a-z-]*", r"`\g<0>`", escaped)
