"""`POST /score`: read and check a request, ask the service, write the answer. Plain ASGI: every request pays."""

import asyncio
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plaudit_service.errors import AllExpired, InvalidRequest, TooLarge
from plaudit_service.http.asgi import Receive, Scope, Send, send_answer
from plaudit_service.http.receiving import Room, read_body, while_connected
from plaudit_service.http.wire import parse_request, to_wire
from plaudit_service.items import ChatItem, Item, PromptItem, ScoreRequest, TextItem, TokenItem, num_chars
from plaudit_service.results import Result
from plaudit_service.serving.service import Service
from plaudit_service.settings import Settings

# A body up to this size is parsed on the event loop: handing it to a thread would cost more than parsing it.
_INLINE_BODY_BYTES = 16_384

# Of what a model that knows steps writes behind each: many empty steps must not make a long text.
_STEP_END_CHARS = 16

_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


class ScoreEndpoint:
    """The ASGI application of one route. Errors are raised; who wraps it answers them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._room = Room(service.settings.max_pending_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            RequestError: it cannot be answered.
            ClientLeft: nobody waits for the answer any more.
        """
        service, settings = self._service, self._service.settings
        service.require_ready()
        headers = dict(scope["headers"])
        deadline = service.clock() + request_timeout_s(headers)
        client = scope["state"]["client"]
        with self._room.share(client) as share:
            body = await read_body(receive, headers, settings=settings, share=share)
            async with while_connected(receive):
                request = await _parse(body)
                model = service.model(request.model)
                scope["state"]["log"].update(model=model.name, sequences=request.num_sequences)
                share.grow(check_sizes(request, settings))
                scored = await model.score(request, deadline=deadline, client=client, on_admitted=share.release)
        answer = {
            "model": model.name,
            "fingerprint": model.identity.fingerprint,
            "engine": model.identity.engine,
        }
        is_large = request.along != "none" or request.explain
        body = await asyncio.to_thread(_json, answer, scored.results) if is_large else _json(answer, scored.results)
        times = {"queue": scored.queue_s, "tokenize": scored.tokenize_s, "infer": scored.infer_s}
        timing = ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in times.items())
        await send_answer(send, 200, b"application/json", body, [(b"server-timing", timing.encode())])


async def _parse(body: bytes) -> ScoreRequest:
    if len(body) <= _INLINE_BODY_BYTES:
        return parse_request(body)
    return await asyncio.to_thread(parse_request, body)


def _json(answer: Mapping[str, Any], results: Iterable[Result]) -> bytes:
    """An answer with its results, each written by itself: other threads have their turns between two large ones."""
    written = ",".join(_JSON.encode(to_wire(result)) for result in results)
    return f'{_JSON.encode(answer)[:-1]},"results":[{written}]}}'.encode()


def request_timeout_s(headers: Mapping[bytes, bytes]) -> float:
    """After how many seconds nobody wants the answer, as X-Request-Timeout-S says.

    Raises:
        InvalidRequest: it is no number.
        AllExpired: that was before now.
    """
    header = headers.get(b"x-request-timeout-s")
    if header is None:
        return math.inf
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidRequest("header X-Request-Timeout-S: not a number of seconds")
    if seconds <= 0:
        raise AllExpired(f"header X-Request-Timeout-S: {seconds}, so the deadline has passed already")
    return seconds


def check_sizes(request: ScoreRequest, settings: Settings) -> int:
    """Characters of all sequences together, where every size is within its limit."""
    if request.num_sequences > settings.max_sequences_per_request:
        limit = settings.max_sequences_per_request
        raise TooLarge(f"the request has {request.num_sequences} sequences, limit {limit}; split it")
    total = 0
    for number, item in enumerate(request.items):
        sizes = _num_chars(item)
        if max(sizes) > settings.max_text_chars:
            limit = settings.max_text_chars
            raise TooLarge(f"items[{number}]: a text of {max(sizes)} characters, limit {limit}; shorten it")
        total += sum(sizes)
    if total > settings.max_request_chars:
        limit = settings.max_request_chars
        raise TooLarge(f"the sequences have {total} characters together, limit {limit}; split the request")
    return total


def _num_chars(item: Item) -> list[int]:
    """Characters (or ids) of each of the item's sequences."""
    match item:
        case TextItem():
            return [len(item.text)]
        case TokenItem():
            return [len(item.token_ids)]
        case PromptItem():
            completions = [item.completion or ""] if item.completions is None else item.completions
            return [len(item.prompt) + size for size in _sizes(completions, item.steps)]
        case ChatItem():
            head = sum(num_chars(value) for message in item.messages for value in message.to_template().values())
            return [head + size for size in _sizes(item.completions or [""], item.steps)]


def _sizes(completions: Sequence[str], steps: Sequence[str] | None) -> list[int]:
    """Characters of each completion, or of the one in steps."""
    return list(map(len, completions)) if steps is None else [sum(len(step) + _STEP_END_CHARS for step in steps)]
