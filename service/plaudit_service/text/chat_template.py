"""Renders a chat template as transformers' `apply_chat_template` does, in a sandbox.

Knows nothing of tokens. Deviation from transformers: there is no clock (`strftime_now`) and no chance, because a score
has to be a function of the text alone; templates that test for the clock fall back to the date that they name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from plaudit_service.items import num_chars
from plaudit_service.text.chat_sandbox import Sandbox, render

Messages = Sequence[Mapping[str, JsonValue]]

# The text of a chat may have this many characters for each of its messages' characters, for each message, and besides.
_CHARS_PER_CHAR, _CHARS_PER_MESSAGE, _CHARS_BESIDES = 4, 1024, 65_536


class ChatTemplateError(ValueError):
    """The template refused these messages, or failed on them."""


def compile_chat_template(source: str, special_tokens: Mapping[str, Any]) -> Callable[[Messages], str]:
    """Compile a template once into a function from messages to text.

    Args:
        source: The Jinja template.
        special_tokens: What the template may use by name, such as `bos_token`.

    Raises:
        ChatTemplateError: here, when the template cannot be parsed; from the function, when it fails on the messages,
            does far more work than a chat needs, or writes a text out of proportion to them.
    """
    try:
        template = Sandbox().from_string(source)
    except Exception as error:  # a template is a program from outside: it can raise anything, here and below
        raise ChatTemplateError(f"the chat template cannot be parsed: {error}") from error

    def render_chat(messages: Messages) -> str:
        try:
            text = render(
                template,
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **special_tokens,
            )
        except Exception as error:
            raise ChatTemplateError(f"the chat template refused the messages: {error}") from error
        given = sum(num_chars(value) for message in messages for value in message.values())
        limit = _CHARS_BESIDES + _CHARS_PER_MESSAGE * len(messages) + _CHARS_PER_CHAR * given
        if len(text) > limit:
            raise ChatTemplateError(
                f"the chat template made {len(text)} characters for {len(messages)} messages of {given}, limit {limit}"
            )
        return text

    return render_chat
