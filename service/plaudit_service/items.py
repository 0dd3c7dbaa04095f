"""What one call asks for: items in any of their forms, and how they shall be scored.

Knows nothing of HTTP, models or tokens.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from plaudit_service.errors import InvalidRequest, NotJson, RequestError, TooLarge

Truncation = Literal["error", "left", "right"]
Along = Literal["none", "steps", "tokens"]

# Far above any useful setting: it bounds what parsing a body can cost before the settings' limits are checked.
MAX_ITEMS = 65_536
_CHARS_OF_NUMBER = 8


class _Strict(BaseModel):
    # Lists fail fast: a body of wrong entries must not make an error for each.
    # What stands below a field describes it in the OpenAPI document and in docs/reference/wire.md.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class _Item(_Strict):
    finished: bool = True
    """False: the completion was cut at its length limit, so no EOS is appended."""

    @property
    def num_sequences(self) -> int:
        """How many sequences, and so results, this item makes."""
        return 1


class TextItem(_Item):
    """One text, scored as it is."""

    text: str
    """The text."""


class PromptItem(_Item):
    """A prompt with one completion, with several that share it, or with one in steps; concatenated as they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["completion"], "properties": {"completion": {"type": "string"}}},
                {"required": ["completions"], "properties": {"completions": {"type": "array"}}},
                {"required": ["steps"], "properties": {"steps": {"type": "array"}}},
            ]
        }
    )

    prompt: str
    """The text that every completion continues."""
    completion: str | None = None
    """One completion."""
    completions: list[str] | None = Field(None, min_length=1, fail_fast=True)
    """Several completions of the prompt; each has a result of its own."""
    steps: list[str] | None = Field(None, min_length=1, fail_fast=True)
    """The completion, step by step."""

    @model_validator(mode="after")
    def _has_one_kind_of_completion(self) -> Self:
        if [self.completion, self.completions, self.steps].count(None) != 2:
            raise ValueError("give one of completion, completions and steps beside prompt")
        return self

    @property
    def num_sequences(self) -> int:
        """One per completion."""
        return 1 if self.completions is None else len(self.completions)


class TextPart(_Strict):
    """A text, as one of the parts of a message's content."""

    type: Literal["text"]
    """The only kind of part that is read."""
    text: str
    """The text."""


def _as_text(content: Any, info: ValidationInfo) -> Any:
    """The text of a message's content, which may be a list of one text part."""
    if isinstance(content, str):
        return content
    if content is None and info.data.get("tool_calls"):
        return None
    match content:
        case [{"type": "text", "text": str() as text, **others}] if all(value is None for value in others.values()):
            return text
        case None:
            what = "missing; only a message with tool_calls may leave it out"
        case [_, _, *_]:
            what = f"{len(content)} parts, and templates join parts in different ways; join them into one text"
        case _:
            what = "neither a text nor a list of one text part"
    raise PydanticCustomError("content", "{what}", {"what": what})


def _refuse_unknown(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError(
            "unknown_field",
            "not a field of a message that chat templates read ({known})",
            {"known": ", ".join(MESSAGE_FIELDS)},
        )
    return value


# What chat templates read of a message, in the order in which they get it.
MESSAGE_FIELDS = ("role", "content", "reasoning_content", "thinking", "tool_calls", "tool_call_id", "name")


class Message(BaseModel):
    """One turn of a chat. Fields that are null count as not there, whatever their names."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra={"anyOf": [{"required": ["content"]}, {"required": ["tool_calls"]}]},
    )
    __pydantic_extra__: dict[str, Annotated[None, BeforeValidator(_refuse_unknown)]]

    role: str
    """Who speaks, by the names of the chat template: `user`, `assistant`, `system`, `tool`."""
    tool_calls: list[dict[str, JsonValue]] | None = None
    """The calls of tools, as the chat template reads them."""
    content: Annotated[str | None, BeforeValidator(_as_text, json_schema_input_type=str | list[TextPart] | None)] = (
        Field(None, validate_default=True)
    )
    """What is said: a text, or a list of one text part. May be left out only where there are tool_calls."""
    reasoning_content: str | None = None
    """The reasoning before the content, for templates that read it by this name."""
    thinking: str | None = None
    """The same, for templates that read it by this name."""
    tool_call_id: str | None = None
    """Which call a tool's message answers."""
    name: str | None = None
    """The name of the tool or the speaker."""

    def to_template(self) -> dict[str, JsonValue]:
        """What a chat template gets: the fields that are there."""
        fields = {name: value for name in MESSAGE_FIELDS if (value := getattr(self, name)) is not None}
        if self.tool_calls:
            fields["tool_calls"] = _without_nulls(self.tool_calls)
        return fields


def _without_nulls(value: Any) -> Any:
    """A JSON value without the keys that tables add to objects, as TRL's `remove_none_values`; lists stay as long."""
    match value:
        case list():
            return list(map(_without_nulls, value))
        case dict():
            return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
        case _:
            return value


class ChatItem(_Item):
    """A chat that the model's template renders, or one with several completions, each an assistant's message.

    With steps it has one completion, in steps.
    """

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    """The turns, in order."""
    completions: list[str] | None = Field(None, min_length=1, fail_fast=True)
    """Several next messages of the assistant; each has a result of its own."""
    steps: list[str] | None = Field(None, min_length=1, fail_fast=True)
    """The next message of the assistant, step by step."""

    @model_validator(mode="after")
    def _has_one_kind_of_completion(self) -> Self:
        if self.completions is not None and self.steps is not None:
            raise ValueError("give completions or steps, not both")
        return self

    @property
    def num_sequences(self) -> int:
        """One per completion, one where there is none."""
        return 1 if self.completions is None else len(self.completions)


class TokenItem(_Item):
    """Token ids of the reward model's own tokenizer, used as they are."""

    token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(fail_fast=True)
    """The ids."""


_FORMS = ("text", "prompt", "messages", "token_ids")


def _form_of(item: Any) -> str | None:
    if isinstance(item, Mapping):
        return next((form for form in _FORMS if form in item), None)
    return next((form for form in _FORMS if hasattr(item, form)), None)


Item = Annotated[
    Annotated[TextItem, Tag("text")]
    | Annotated[PromptItem, Tag("prompt")]
    | Annotated[ChatItem, Tag("messages")]
    | Annotated[TokenItem, Tag("token_ids")],
    Discriminator(
        _form_of,
        custom_error_type="item_form",
        custom_error_message="an item is an object with one of text, prompt, messages, token_ids",
    ),
]


class ScoreRequest(_Strict):
    """The body of `POST /score`."""

    items: list[Item] = Field(max_length=MAX_ITEMS, fail_fast=True)
    """What to score. An item with n completions has n results."""
    model: str | None = None
    """Name of a loaded model; may be left out if only one is loaded."""
    truncation: Truncation = "error"
    """Of a sequence over the model's limit: `error` gives it the status `too_long`; `left` keeps the end and the
    leading special tokens; `right` keeps the start and the trailing special tokens."""
    fingerprint: str | None = None
    """Refuse the request (409) unless the reward model with this fingerprint computes the scores."""
    engine: str | None = None
    """Refuse the request (409) unless this engine computes the scores."""
    raw: bool = False
    """Return raw scores, without the bundle's normalization."""
    along: Along = "none"
    """Also return scores at the end of each step, or at each token."""
    explain: bool = False
    """Also return the text that was scored. It is never logged."""

    @property
    def num_sequences(self) -> int:
        """How many results the answer will hold."""
        return sum(item.num_sequences for item in self.items)


def check_request(content: Mapping[str, Any]) -> ScoreRequest:
    """Check a request given as Python objects, as `parse_request` does a body.

    Raises:
        InvalidRequest: it has a wrong shape; the message says where.
    """
    try:
        return ScoreRequest.model_validate(content)
    except ValidationError as error:
        raise as_request_error(error) from error


def as_request_error(error: ValidationError) -> RequestError:
    """The first thing that is wrong with a request, and where."""
    first, line = first_problem(error)
    if first["type"] == "json_invalid":
        return NotJson(f"{first['msg']}; send a JSON object")
    if first["type"] == "too_long" and first["loc"] == ("items",):
        return TooLarge(f"the request has more than {MAX_ITEMS} items; split it")
    return InvalidRequest(line)


def first_problem(error: ValidationError, within: str = "") -> tuple[ErrorDetails, str]:
    """The first thing that is wrong with a document, and one line of it: where, and what.

    Args:
        error: what pydantic found.
        within: where the document is a part of a larger one.
    """
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # The tag of an item's form is no key of the document.
    keys = [key for at, key in enumerate(first["loc"]) if not (at == 2 and first["loc"][0] == "items")]
    where = (within + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)).lstrip(".")
    return first, f"{where or 'body'}: {first['msg']}"


def num_chars(value: JsonValue) -> int:
    """About the characters of a JSON value that a template writes; of a text exactly."""
    match value:
        case str():
            return len(value)
        case list():
            return sum(map(num_chars, value))
        case dict():
            return sum(len(key) + num_chars(inner) for key, inner in value.items())
        case _:
            return _CHARS_OF_NUMBER
