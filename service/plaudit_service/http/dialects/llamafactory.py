"""LLaMA-Factory 0.9, `reward_model_type: api`. Source: llamafactory/train/ppo/ppo_utils.py and api/protocol.py."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects.dialect import Answered, Asked, DialectRoute, Shape, parse
from plaudit_service.http.dialects.special_tokens import SpecialTokens
from plaudit_service.items import MAX_ITEMS, TextItem


class _Body(Shape):
    messages: list[str] = Field(max_length=MAX_ITEMS, fail_fast=True)  # texts, in spite of the name
    max_length: int | None = None


def read(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """Each message is a text with the policy's special tokens. Its `model` is a placeholder, so it is not read."""
    asked = parse(_Body, body)
    if asked.max_length is not None:
        raise InvalidRequest("max_length: texts are cut by the service's --dialect-truncation only; leave it out")
    return Asked([TextItem(text=text, finished=False) for text in asked.messages], write)


def write(answered: Answered) -> dict[str, Any]:
    """The document of LLaMA-Factory's own score server."""
    return {
        "id": f"scoreeval-{answered.id}",
        "object": "score.evaluation",
        "model": answered.model.name,
        "scores": list(answered.scores),
    }


class _Answer(BaseModel):
    id: str
    object: Literal["score.evaluation"]
    model: str
    scores: list[float]


ROUTES = (DialectRoute("/v1/score/evaluation", "llamafactory", read, _Body, _Answer),)
