"""Renders a chat template as transformers' `apply_chat_template` does, in a sandbox.

Knows nothing of tokens. Deviation from transformers: there is no clock (`strftime_now`), because a score has to be a
function of the text alone; templates that test for it fall back to the date that they name themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = Sequence[Mapping[str, str]]


class ChatTemplateError(ValueError):
    """The template refused these messages, or failed on them."""


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` renders its body; transformers marks the assistant's tokens with it."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_chat_template(source: str, special_tokens: Mapping[str, Any]) -> Callable[[Messages], str]:
    """Compile a template once into a function from messages to text.

    Args:
        source: The Jinja template.
        special_tokens: What the template may use by name, such as `bos_token`.

    Raises:
        ChatTemplateError: here, when the template cannot be parsed; from the function, when it fails on the messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template cannot be parsed: {error}") from error

    def render(messages: Messages) -> str:
        try:
            return template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **special_tokens,
            )
        except Exception as error:  # a template is a program from outside: it can raise anything
            raise ChatTemplateError(f"the chat template refused the messages: {error}") from error

    return render
