"""What a vLLM server is asked and what it has to answer, as bytes. Pure: knows no HTTP.

Routes and fields are those of vLLM 0.32 (`/pooling`, `/v1/models`, `/version`, `/metrics`). It ignores fields that it
does not know, so that a misspelt one would be no error; what shows that the values are raw are the golden texts.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plaudit_service.text.token_ids import Ids

_FLOAT_BYTES = 4
_START = re.compile(rb"^process_start_time_seconds (\S{1,40})$", re.MULTILINE)
_MAX_NAME_CHARS = 1024  # of what is shown in /info, or sent back


class AnswerError(ValueError):
    """An answer is none to what was asked; the message says why."""


@dataclass(frozen=True)
class Served:
    """What a server says of itself.

    Attributes:
        model: the name that requests have to use.
        max_tokens: the longest sequence; None: it does not say.
        version: of vLLM; None: it does not say.
        started: when its process began, in seconds since 1970; None: it does not say.
    """

    model: str
    max_tokens: int | None
    version: str | None
    started: float | None


def pooling_request(model: str, sequences: Sequence[Ids], salt: str | None = None) -> bytes:
    """The JSON that asks for the raw values of a classifier's head: float32, little endian, one row a sequence.

    Never with `truncate_prompt_tokens`, which cuts ids.

    Args:
        model: The name that it is served under.
        sequences: Of ids.
        salt: Only prefixes that were kept for requests with the same one are used; None: for those without.
    """
    asked: dict[str, object] = {
        "model": model,
        "input": [ids.tolist() for ids in sequences],
        "task": "classify",
        "use_activation": False,
        "encoding_format": "bytes_only",
        "embed_dtype": "float32",
        "endianness": "little",
    }
    if salt is not None:
        asked["cache_salt"] = salt
    return json.dumps(asked, separators=(",", ":")).encode()


def answer_bytes(num_sequences: int, num_heads: int) -> int:
    """How long the answer to `pooling_request` has to be."""
    return num_sequences * num_heads * _FLOAT_BYTES


def parse_heads(body: bytes, num_sequences: int, num_heads: int) -> npt.NDArray[np.float32]:
    """The raw values in an answer, shape (B, heads), which need not be finite.

    Raises:
        AnswerError: it does not have one for each head of each sequence.
    """
    expected = answer_bytes(num_sequences, num_heads)
    if len(body) != expected:
        told = "longer" if len(body) > expected else "shorter"
        raise AnswerError(
            f"its answer is {told} than the {expected} bytes of {num_sequences} sequences and {num_heads} labels; "
            "check that it serves the bundle's checkpoint"
        )
    return np.frombuffer(body, dtype="<f4").reshape(num_sequences, num_heads).astype(np.float32)


def parse_models(body: bytes) -> tuple[str, int | None]:
    """The name of the model that is served, and its longest sequence; the base model, whatever adapters there are.

    Raises:
        AnswerError: it names none.
    """
    cards = _object(body).get("data")
    for card in cards if isinstance(cards, list) else []:
        if isinstance(card, dict) and (name := _name(card.get("id"))) and card.get("parent") is None:
            length = card.get("max_model_len")
            return name, length if isinstance(length, int) else None
    raise AnswerError("its /v1/models names no model; is it vLLM's server?")


def parse_version(body: bytes) -> str | None:
    """The version; None: it names none."""
    return _name(_object(body).get("version"))


def parse_start(body: bytes) -> float | None:
    """When the process began, by its metrics; None: they do not say, as those of several API servers."""
    found = _START.search(body)
    try:
        started = math.nan if found is None else float(found[1])
    except ValueError:
        return None
    return started if math.isfinite(started) else None


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_NAME_CHARS else None


def _object(body: bytes) -> dict[str, object]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AnswerError("its answer is not JSON; is it vLLM's server?") from error
    if not isinstance(content, dict):
        raise AnswerError("its answer is not a JSON object; is it vLLM's server?")
    return content
