"""SGLang's `POST /classify` of a reward model, and the `POST /v1/embeddings` that verl asks. Pure.

Sources: sglang/srt/entrypoints/http_server.py, managers/io_struct.py (EmbeddingReqInput), docs on reward models; verl's
experimental/reward_loop. Both answer with a list of numbers whose only one is the score: no activation is applied.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from plaudit_service.errors import InvalidRequest, NotJson
from plaudit_service.http.dialects import vllm
from plaudit_service.http.dialects.dialect import Answered, Asked, DialectRoute, Shape, parse, parse_object
from plaudit_service.http.dialects.special_tokens import SpecialTokens
from plaudit_service.http.dialects.vllm import Texts, TextsOrTokens, TokenIds, is_single, items_of


def _refuse_unknown(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("unknown_field", "an unknown field, which could change the result; leave it out")
    return value


class _Known(Shape):
    # Other fields could change what SGLang would compute (images, dimensions), so they are refused unless null.
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[None, BeforeValidator(_refuse_unknown)]]

    model: str | None = None
    rid: str | list[str] | None = None
    priority: int | None = None


class _Body(_Known):
    text: Texts | None = None
    input_ids: TokenIds | None = None
    sampling_params: Any = None  # SGLang's own code calls them a dummy here
    log_metrics: bool | None = None
    routing_key: str | None = None
    background: bool | None = None


class _Embeddings(_Known):
    input: TextsOrTokens
    encoding_format: Literal["float", "base64"] | None = None  # OpenAI's client asks for base64 and takes numbers
    user: str | None = None


def read(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """One text or a list, or the token ids of one or several; one gets an object, a list gets a list."""
    asked = parse(_Body, body)
    if (asked.text is None) == (asked.input_ids is None):
        raise InvalidRequest("body: give either text or input_ids")
    name, given = ("text", asked.text) if asked.input_ids is None else ("input_ids", asked.input_ids)
    single = is_single(given)

    def write(answered: Answered) -> Any:
        embeddings = [
            {"embedding": [score], "meta_info": {"id": f"{answered.id}-{number}", "prompt_tokens": num_tokens}}
            for number, (score, num_tokens) in enumerate(zip(answered.scores, answered.num_tokens, strict=True))
        ]
        return embeddings[0] if single else embeddings

    return Asked(items_of(name, given), write, model=asked.model)


def read_embeddings(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """One text or a list, or the token ids of one or several."""
    asked = parse(_Embeddings, body)
    return Asked(items_of("input", asked.input), write_embeddings, model=asked.model)


def write_embeddings(answered: Answered) -> dict[str, Any]:
    """OpenAI's list of embeddings, each of one number."""
    tokens = sum(answered.num_tokens)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": [score]} for index, score in enumerate(answered.scores)
        ],
        "model": answered.model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def read_either(body: bytes, parameters: Mapping[str, str], tokens: SpecialTokens) -> Asked:
    """What SGLang's clients send by its fields, else vLLM's."""
    try:
        is_sglangs = not parse_object(body).keys().isdisjoint(("text", "input_ids"))
    except (InvalidRequest, NotJson):  # vLLM's says so
        is_sglangs = False
    return (read if is_sglangs else vllm.read)(body, parameters, tokens)


class _Meta(BaseModel):
    id: str
    prompt_tokens: int


class _Embedding(BaseModel):
    embedding: list[float]
    meta_info: _Meta


class _OpenAIEmbedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float]


class _EmbeddingList(BaseModel):
    object: Literal["list"]
    data: list[_OpenAIEmbedding]
    model: str
    usage: dict[str, int]


_Answer = _Embedding | list[_Embedding]
_CLASSIFY = vllm.CLASSIFY.path

ROUTES = (
    DialectRoute(_CLASSIFY, "sglang_classify", read, _Body, _Answer, example={"text": "TEXT"}),
    DialectRoute(
        "/v1/embeddings",
        "sglang_embeddings",
        read_embeddings,
        _Embeddings,
        _EmbeddingList,
        example={"input": "TEXT"},
    ),
)
# Where vLLM's dialect is answered, too.
CLASSIFY_OR_VLLM = DialectRoute(
    _CLASSIFY,
    "vllm_or_sglang_classify",
    read_either,
    vllm.Body | _Body,
    vllm.Answer | _Answer,
    example={"text": "TEXT"},
)
