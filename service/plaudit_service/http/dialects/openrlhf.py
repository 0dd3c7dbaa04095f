"""OpenRLHF 0.11, `--reward.remote_url http://host:8000/get_reward`. Source: openrlhf/utils/agent.py."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects.chats import find_chat
from plaudit_service.http.dialects.dialect import Answered, Asked, DialectRoute, Shape, parse
from plaudit_service.http.dialects.special_tokens import SpecialTokens, strip_end
from plaudit_service.items import MAX_ITEMS, ChatItem, Item, TextItem


class _Body(Shape):
    query: list[str] = Field(max_length=MAX_ITEMS, fail_fast=True)
    prompts: list[str] = Field([], fail_fast=True)
    labels: list[Any] = Field([])


def read(body: bytes, _: Mapping[str, str], tokens: SpecialTokens) -> Asked:
    """Each query is a text that is scored as it stands, unless its label is the chat before the completion."""
    asked = parse(_Body, body)
    for name, values in (("prompts", asked.prompts), ("labels", asked.labels)):
        if values and len(values) != len(asked.query):
            raise InvalidRequest(
                f"{name}: {len(values)} entries, but query has {len(asked.query)}; send one for each query"
            )
    prompts = asked.prompts or [""] * len(asked.query)
    labels = asked.labels or [None] * len(asked.query)
    return Asked(
        [_item(number, *parts, tokens) for number, parts in enumerate(zip(asked.query, prompts, labels, strict=True))],
        write,
    )


def write(answered: Answered) -> dict[str, Any]:
    """Scores stand for rewards; `extra_logs` holds what may be charted beside them."""
    scores = list(answered.scores)
    logs = {"num_tokens": [float(num_tokens) for num_tokens in answered.num_tokens]}
    return {"rewards": scores, "scores": scores, "extra_logs": logs}


def _item(number: int, query: str, prompt: str, label: Any, tokens: SpecialTokens) -> Item:
    chat = find_chat(label, f"labels[{number}]")
    if chat is None:
        # The policy's EOS is in the text where it was generated, and must not be added where it was not.
        return TextItem(text=query, finished=False)
    if not prompt:
        raise InvalidRequest(
            f"prompts[{number}]: not a text, so it is not known where the completion in query[{number}] begins; "
            "send prompts as texts, or send no chat as label"
        )
    if not query.startswith(prompt):
        raise InvalidRequest(
            f"query[{number}]: does not begin with prompts[{number}], so its completion is not known; the text "
            "was cut to the policy's length, or the policy's tokenizer changes text: raise --data.max_len, or "
            "send no chat as label"
        )
    completion, finished = strip_end(query[len(prompt) :], tokens)
    return ChatItem(messages=chat, completions=[completion], finished=finished)


class _Answer(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


ROUTES = (DialectRoute("/get_reward", "openrlhf", read, _Body, _Answer),)
