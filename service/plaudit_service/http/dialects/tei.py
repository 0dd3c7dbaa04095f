"""text-embeddings-inference (TEI): `POST /predict`, `/rerank`, and `/`, which huggingface_hub's client posts to. Pure.

Sources: router/src/http/types.rs and server.rs, core/src/infer.rs of TEI 1.9; huggingface_hub/inference of 2.4. Scores
are squashed unless `raw_scores` is true (the Hub's client: `function_to_apply="none"`), as TEI does.

Deviations: TEI scores a pair of texts with any model; here one that was trained on single texts refuses it, since
`["a", "b"]` is one pair and most often meant as two texts. It also re-ranks with every model of one label.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SkipValidation

from plaudit_service.bundles.bundle import Manifest
from plaudit_service.errors import (
    EmptyBatch,
    InvalidRequest,
    ItemFailed,
    NotReranker,
    QueueFull,
    RequestError,
    Unavailable,
)
from plaudit_service.http.dialects.dialect import (
    Answered,
    Asked,
    Chosen,
    DialectRoute,
    ErrorShape,
    Shape,
    parse,
)
from plaudit_service.http.dialects.special_tokens import SpecialTokens
from plaudit_service.http.dialects.vllm import sigmoid
from plaudit_service.items import MAX_ITEMS, Item, PromptItem, TextItem, Truncation
from plaudit_service.settings import Settings

_Pair = Annotated[list[str], Field(min_length=1, max_length=2)]
_Function = Literal["none", "sigmoid", "softmax"]
_FORMS = 'give "TEXT", ["TEXT", "TEXT"] (one pair), or a batch: [["TEXT"], ["TEXT", "TEXT"]]'


class _Truncated(Shape):
    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None
    raw_scores: bool = False

    def truncation(self, setting: Truncation) -> Truncation:
        """Whether the request, or else the operator, has long texts cut, and at which end; TEI cuts the right one."""
        if self.truncate is False or (self.truncate is None and setting == "error"):
            return "error"
        if self.truncation_direction is not None:
            return "left" if self.truncation_direction.lower() == "left" else "right"
        return "right" if setting == "error" else setting


class _Predict(_Truncated):
    # Checked below: of a union, an error would tell why it is not the other form.
    inputs: SkipValidation[str | _Pair | list[_Pair]]


class _Parameters(Shape):
    function_to_apply: _Function | None = None
    top_k: int | None = Field(None, ge=1)


class _Classify(_Predict):
    parameters: _Parameters | None = None


class _Rerank(_Truncated):
    query: str
    texts: list[str] = Field(max_length=MAX_ITEMS, fail_fast=True)
    return_text: bool = False


def read_predict(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """A text or a pair, answered by a list of labels; or a batch of these, answered by a list of lists."""
    asked = parse(_Predict, body)
    items, is_batch = _sequences(asked.inputs)
    function: _Function | None = "none" if asked.raw_scores else None

    def write(answered: Answered) -> Any:
        predictions = _predictions(answered, function)
        return predictions if is_batch else predictions[0]

    return _asked(asked, items, function, write)


def read_classify(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """The same from the Hub's client, answered by a list of lists, whatever the inputs."""
    asked = parse(_Classify, body)
    items, _is_batch = _sequences(asked.inputs)
    parameters = asked.parameters or _Parameters()
    function = parameters.function_to_apply or ("none" if asked.raw_scores else None)
    return _asked(
        asked,
        items,
        function,
        lambda answered: [labels[: parameters.top_k] for labels in _predictions(answered, function)],
    )


def read_rerank(body: bytes, _: Mapping[str, str], __: SpecialTokens) -> Asked:
    """A query with several texts, ranked by the scores of their pairs."""
    asked = parse(_Rerank, body)
    if not asked.texts:
        raise EmptyBatch("texts: empty; give at least one")

    def write(answered: Answered) -> list[dict[str, Any]]:
        scores = answered.scores if asked.raw_scores else map(sigmoid, answered.scores)
        ranks = [
            {"index": index, **({"text": asked.texts[index]} if asked.return_text else {}), "score": score}
            for index, score in enumerate(scores)
        ]
        return _descending(ranks)

    return Asked(
        [PromptItem(prompt=asked.query, completions=asked.texts, finished=False)],
        write,
        raw=None if asked.raw_scores else True,
        truncation=asked.truncation,
        check=_require_reranker,
    )


def write_error(error: RequestError) -> tuple[int, dict[str, str]]:
    """TEI's JSON of an error: for its clients, what the model fails on is 424."""
    if isinstance(error, NotReranker):
        return error.status, {"error": error.detail, "error_type": "Backend"}
    if isinstance(error, ItemFailed) and error.by_model:
        return 424, {"error": error.detail, "error_type": "Backend"}
    kinds = {QueueFull: "Overloaded", Unavailable: "Unhealthy", EmptyBatch: "Empty"}
    return error.status, {"error": error.detail, "error_type": kinds.get(type(error), "Validation")}


def info(
    settings: Settings, *, max_batch_tokens: int, tokenizer_threads: int, model: Chosen | None, manifest: Manifest
) -> dict[str, Any]:
    """What TEI's clients read of `GET /info`.

    Args:
        settings: What the operator set.
        max_batch_tokens: Padded tokens of one call of the engine.
        tokenizer_threads: How many tokenize.
        model: The only model; None: there are several, and nothing is said of them.
        manifest: Of its bundle.
    """
    about: dict[str, Any] = {
        "max_concurrent_requests": settings.max_waiting_requests,
        "max_client_batch_size": settings.max_sequences_per_request,
        "max_batch_tokens": max_batch_tokens,
        "max_batch_requests": None,
        "auto_truncate": settings.dialect_truncation != "error",
        "tokenization_workers": tokenizer_threads,
        "sha": None,
        "docker_label": None,
    }
    if model is None:
        return about
    labels = {str(number): label for number, label in enumerate(_labels(model))}
    kind = "reranker" if _is_reranker(model) else "classifier"
    return about | {
        "model_id": manifest.source.id,
        "model_sha": manifest.source.revision,
        "model_dtype": _DTYPES[manifest.scoring.precision],
        "served_model_name": model.name,
        "model_type": {kind: {"id2label": labels, "label2id": {label: int(id_) for id_, label in labels.items()}}},
        "max_input_length": manifest.scoring.max_tokens,
    }


_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def _sequences(inputs: Any) -> tuple[list[Item], bool]:
    """The items of `inputs`, and whether they are a batch."""
    is_batch = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], list)
    if inputs == []:
        raise EmptyBatch(f"inputs: empty; {_FORMS}")
    sequences = inputs if is_batch else [inputs]
    if len(sequences) > MAX_ITEMS:
        raise InvalidRequest(f"inputs: {len(sequences)} entries, limit {MAX_ITEMS}; split it")
    return [
        _item(f"inputs[{number}]" if is_batch else "inputs", given) for number, given in enumerate(sequences)
    ], is_batch


def _item(where: str, given: Any) -> Item:
    match given:
        case str() if where == "inputs":
            return TextItem(text=given, finished=False)
        case [str() as text]:
            return TextItem(text=text, finished=False)
        case [str() as first, str() as second]:
            return PromptItem(prompt=first, completion=second, finished=False)
    raise InvalidRequest(f"{where}: neither a text nor a pair; {_FORMS}")


def _asked(body: _Truncated, items: list[Item], function: _Function | None, write: Callable[[Answered], Any]) -> Asked:
    def check(model: Chosen) -> None:
        if function == "softmax" and len(model.labels) == 1:
            raise InvalidRequest(
                f'parameters.function_to_apply: model "{model.name}" has one label, whose softmax is always 1; send '
                '"none" for the score itself'
            )
        if not model.pair and any(isinstance(item, PromptItem) for item in items):
            raise InvalidRequest(
                f'inputs: ["a", "b"] is one pair of texts, and model "{model.name}" scores single texts; for two '
                'texts send [["a"], ["b"]]'
            )

    # An activation is of the model's own output: normalization has no place before it.
    raw = None if function == "none" else True
    return Asked(items, write, raw=raw, truncation=body.truncation, check=check)


def _predictions(answered: Answered, function: _Function | None) -> list[list[dict[str, Any]]]:
    """For each sequence all labels, the greatest first; the score of a model of one label, the outputs of several."""
    labels = _labels(answered.model)
    if len(labels) == 1:
        values: Iterable[Sequence[float]] = ([score] for score in answered.scores)
        activate = _FUNCTIONS[function or "sigmoid"]
    else:
        values = (list(heads.values()) for heads in answered.heads if heads is not None)
        activate = _FUNCTIONS[function or "softmax"]
    return [
        _descending([{"score": score, "label": label} for score, label in zip(activate(each), labels, strict=True)])
        for each in values
    ]


def _softmax(values: Sequence[float]) -> list[float]:
    greatest = max(values)
    powers = [math.exp(value - greatest) for value in values]
    return [power / sum(powers) for power in powers]


_FUNCTIONS: Mapping[_Function, Callable[[Sequence[float]], Sequence[float]]] = {
    "none": lambda values: values,
    "sigmoid": lambda values: [sigmoid(value) for value in values],
    "softmax": _softmax,
}


def _descending(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By falling score; of equal ones the last first, as TEI's reversed order has it."""
    return sorted(entries, key=lambda entry: float(entry["score"]))[::-1]


def _labels(model: Chosen) -> tuple[str, ...]:
    """As the checkpoint has them: the exporter calls an only one without a name of its own `score`."""
    return ("LABEL_0",) if model.labels == ("score",) else model.labels


def _is_reranker(model: Chosen) -> bool:
    return model.pair and len(model.labels) == 1


def _require_reranker(model: Chosen) -> None:
    if not _is_reranker(model):
        raise NotReranker(
            f'model is not a re-ranker model: "{model.name}" does not score pairs of texts, or has several '
            "labels; use /predict"
        )


class _Prediction(BaseModel):
    score: float
    label: str


class _Rank(BaseModel):
    index: int
    text: str | None = None
    score: float


class _Error(BaseModel):
    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


_ERRORS = ErrorShape(
    write_error,
    _Error,
    {
        400: "The body is not JSON, or there is nothing to score",
        404: "No such model",
        408: "The body did not arrive in time",
        413: "The body, the number of sequences or a text is over the limit",
        415: "The body is compressed",
        422: "The request has a wrong shape, or a text cannot be scored",
        424: "The model fails on a text, or ranks none",
        429: "Too many requests wait",
        503: "Not ready or draining, or a deadline has passed",
    },
    sheds=True,
)
_TEXT = {"inputs": "TEXT"}

ROUTES = (
    DialectRoute(
        "/predict",
        "tei_predict",
        read_predict,
        _Predict,
        list[_Prediction] | list[list[_Prediction]],
        example=_TEXT,
        errors=_ERRORS,
    ),
    DialectRoute(
        "/rerank",
        "tei_rerank",
        read_rerank,
        _Rerank,
        list[_Rank],
        example={"query": "TEXT", "texts": ["TEXT"]},
        errors=_ERRORS,
    ),
    DialectRoute("/", "tei_classify", read_classify, _Classify, list[list[_Prediction]], example=_TEXT, errors=_ERRORS),
)
