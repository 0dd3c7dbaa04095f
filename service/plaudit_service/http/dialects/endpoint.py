"""Mounts the dialects: one ASGI application for each route, through the same queue, limits and metrics as `/score`.

Their trainers cannot bear to be shed: a request that finds the queue full waits, in a room bounded in requests and
bytes. Their answers hold bare numbers: where one sequence has no score, the whole call is an error.
"""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from plaudit_service.errors import AllExpired, InvalidRequest, ItemFailed, QueueFull, Unavailable
from plaudit_service.http.asgi import Receive, Scope, Send, send_answer
from plaudit_service.http.dialects import llamafactory, nemo_gym, openrlhf, sglang, slime, tei, vllm
from plaudit_service.http.dialects.dialect import Answered, Asked, Chosen, DialectRoute, Settled
from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.http.dialects.policy_tokenizer import read_policy_tokens
from plaudit_service.http.dialects.special_tokens import SpecialTokens, find_foreign
from plaudit_service.http.receiving import Room, Share, read_body, while_connected
from plaudit_service.http.score_endpoint import check_sizes, request_timeout_s
from plaudit_service.items import ScoreRequest
from plaudit_service.queueing.fairness import room
from plaudit_service.results import Result, Status
from plaudit_service.serving.served_model import ServedModel
from plaudit_service.serving.service import TOKENIZER_THREADS, Service

DIALECTS: Mapping[str, Sequence[DialectRoute]] = {
    "openrlhf": openrlhf.ROUTES,
    "llamafactory": llamafactory.ROUTES,
    "vllm": vllm.ROUTES,
    "slime": slime.ROUTES,
    "tei": tei.ROUTES,
    "sglang": sglang.ROUTES,
    "nemo-gym": nemo_gym.ROUTES,
}


def dialect_routes(names: Iterable[str]) -> list[DialectRoute]:
    """The routes of some dialects, one for each path."""
    routes = {route.path: route for name in names for route in DIALECTS[name]}
    if {"vllm", "sglang"} <= set(names):
        routes[vllm.CLASSIFY.path] = sglang.CLASSIFY_OR_VLLM
    return list(routes.values())


def dialect_endpoints(service: Service) -> list["DialectEndpoint"]:
    """The application of each route that the settings ask for.

    Raises:
        SettingsError: the policy's tokenizer cannot be read.
    """
    room = _WaitingRoom(service)
    directory = service.settings.policy_tokenizer
    tokens = read_policy_tokens(Path(directory)) if directory else KnownTokens()
    return [DialectEndpoint(route, service, room, tokens) for route in dialect_routes(service.settings.dialects)]


def dialect_info(service: Service) -> dict[str, Any]:
    """What the clients of a dialect read of `GET /info`."""
    if "tei" not in service.settings.dialects:
        return {}
    first = next(iter(service.pipelines.values())).model
    batch_tokens = first.engine.costs.batch_tokens // service.num_calls
    return tei.info(
        service.settings,
        max_batch_tokens=service.settings.max_batch_tokens or batch_tokens,
        tokenizer_threads=TOKENIZER_THREADS,
        model=_chosen(next(iter(service.models.values()))) if len(service.models) == 1 else None,
        manifest=first.bundle.manifest,
    )


class DialectEndpoint:
    """The ASGI application of one route. Errors are raised; who wraps it answers them."""

    def __init__(self, route: DialectRoute, service: Service, room: "_WaitingRoom", tokens: SpecialTokens) -> None:
        self.route = route
        self._service = service
        self._room = room
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            RequestError: it cannot be answered, or one of its sequences has no score; 429 only where clients know it.
            ClientLeft: nobody waits for the answer any more.
        """
        errors = self.route.errors
        if errors is not None:
            scope["state"]["write_error"] = errors.write
        self._service.require_ready()
        try:
            answer = await self._answer(scope, receive)
        except (QueueFull, AllExpired) as error:
            if isinstance(error, QueueFull) and errors is not None and errors.sheds:
                raise
            raise Unavailable(error.detail) from error
        body = (
            answer if isinstance(answer, bytes) else json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
        )
        await send_answer(send, 200, b"application/json", body)

    async def _answer(self, scope: Scope, receive: Receive) -> object:
        service, settings = self._service, self._service.settings
        headers = dict(scope["headers"])
        parameters = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        deadline = service.clock() + request_timeout_s(headers)
        client = scope["state"]["client"]
        with ExitStack() as stack:
            share = stack.enter_context(self._room.share(client))
            body = await read_body(receive, headers, settings=settings, share=share)
            async with while_connected(receive):
                read = await asyncio.to_thread(self._read, body, parameters)
                if isinstance(read, Settled):
                    return read.document
                asked, model = read
                request = ScoreRequest.model_construct(
                    items=asked.items,
                    truncation=asked.truncation(settings.dialect_truncation),
                    raw=settings.dialect_raw if asked.raw is None else asked.raw,
                    along=asked.along(_chosen(model)),
                )
                scope["state"]["log"].update(model=model.name, sequences=request.num_sequences)
                share.grow(check_sizes(request, settings))
                scored = await model.score(
                    request,
                    deadline=deadline,
                    client=client,
                    waits=True,
                    on_admitted=stack.close,
                )
        answered = Answered(
            model=_chosen(model),
            scores=_scores(scored.results),
            num_tokens=[result.num_tokens for result in scored.results],
            id=uuid.uuid4().hex,
            created_s=int(time.time()),
            heads=[result.heads for result in scored.results],
            terms=[model.terms(result, raw=request.raw) for result in scored.results],
            along=[result.along.scores for result in scored.results if result.along is not None],
        )
        return asked.write(answered)

    def _read(self, body: bytes, parameters: Mapping[str, str]) -> tuple[Asked, ServedModel] | Settled:
        """What is asked, and of which model; or the answer, where no model has to be asked."""
        asked = self.route.read(body, parameters, self._tokens)
        if isinstance(asked, Settled):
            return asked
        model = self._model(asked, parameters)
        asked.check(_chosen(model))
        if self._service.settings.dialect_check_tokens:
            _refuse_foreign_tokens(asked, model, self._tokens)
        return asked, model

    def _model(self, asked: Asked, parameters: Mapping[str, str]) -> ServedModel:
        """The model that body or URL name, or the only one; a body may name the checkpoint that it was made from."""
        service = self._service
        if asked.model in service.models:
            return service.models[asked.model]
        if asked.model is not None:
            sources = {name: part.model.bundle.manifest.source.id for name, part in service.pipelines.items()}
            return service.model(made_from(asked.model, sources) or asked.model)
        name = parameters.get("model")
        if name is None and len(service.models) > 1:
            raise InvalidRequest(
                f"several models are loaded: {', '.join(service.models)}; name one in the URL, as in "
                f"{self.route.path}?model={next(iter(service.models))}"
            )
        return service.model(name)


def made_from(checkpoint: str, sources: Mapping[str, str]) -> str | None:
    """The one model that was made from a checkpoint, named by its hub id or by a path; None: it is none, or several.

    A bundle's source is a hub id, or a directory's name without its path, so a path may end in either. `org/name` is a
    hub id and no path: the `name` of another organization is another model.

    Args:
        checkpoint: What the request names.
        sources: The source of each model, by the model's name.
    """
    fits = [name for name, source in sources.items() if source == checkpoint]
    if not fits and checkpoint.startswith(("/", "./", "../", "~")):
        fits = [name for name, source in sources.items() if checkpoint.rstrip("/").endswith(f"/{source}")]
    return fits[0] if len(fits) == 1 else None


class _WaitingRoom:
    """What all requests hold from their first byte until they are admitted to the queue.

    Clients share it as they do the queue. Else one client's burst would fill it, and everyone else would be refused
    before they could take their turn.
    """

    def __init__(self, service: Service) -> None:
        self._limit = service.settings.max_waiting_requests
        self._bytes = Room(service.settings.max_pending_bytes)
        self._waiting = service.metrics.waiting_requests
        self._num_requests: Counter[str] = Counter()  # by client

    @contextmanager
    def share(self, client: str) -> Iterator[Share]:
        """The part of one request, given back at the end.

        Args:
            client: Who shares the room with other clients; "": one who does not.

        Raises:
            QueueFull: there is no room for one more.
        """
        num, own = self._num_requests.total(), self._num_requests[client]
        if (room(self._limit, num, own) if client else self._limit - num) < 1:
            of_them = f", {own} of them this client's" if client else ""
            raise QueueFull(f"{num} requests wait{of_them}, limit {self._limit}; try again later")
        self._num_requests[client] += 1
        self._waiting.inc()
        try:
            with self._bytes.share(client) as share:
                yield share
        finally:
            self._num_requests[client] -= 1
            if not self._num_requests[client]:
                del self._num_requests[client]
            self._waiting.dec()


def _chosen(model: ServedModel) -> Chosen:
    """What a dialect may know of a model."""
    pair = all(part.model.bundle.scoring.pair for part in model.parts)
    if model.combination:
        return Chosen(model.name, (model.name,), pair)
    scoring = model.parts[0].model.bundle.scoring
    labels = tuple(head.name for head in scoring.heads)
    good = tuple(head.weight > 0 for head in scoring.heads) if scoring.link == "sigmoid" else None
    return Chosen(model.name, labels, pair, scoring.steps is not None, good)


def _refuse_foreign_tokens(asked: Asked, model: ServedModel, tokens: SpecialTokens) -> None:
    """Refuse a text of a policy with another tokenizer, which this model would take for words.

    Raises:
        InvalidRequest: it holds a special token that the tokenizer of the model, or of a part, does not know.
    """
    for part in model.parts:
        found = find_foreign(asked.items, tokens, part.model.tokenization.has_token)
        if found is not None:
            number, token = found
            raise InvalidRequest(
                f"items[{number}]: the text holds the special token {token}, which the tokenizer of model "
                f'"{part.model.bundle.name}" does not know: policy and reward model have different chat templates, '
                "and the score would be of another text. Send chats instead of texts (docs/trainers); if this is not "
                "a token of the policy, start the service with --policy-tokenizer DIR, or with "
                "--no-dialect-check-tokens"
            )


def _scores(results: Sequence[Result]) -> list[float]:
    """The score of each sequence.

    Raises:
        ItemFailed: one has none, and would have none again.
        Unavailable: one has none yet.
    """
    failed = [(number, result) for number, result in enumerate(results) if result.score is None]
    for number, result in sorted(failed, key=lambda pair: pair[1].status is Status.EXPIRED):
        detail = result.detail or ""
        if result.status is Status.TOO_LONG:  # its remedy is a field of /score
            detail = f"{detail.rpartition(';')[0]}; shorten it, or start the service with --dialect-truncation left"
        message = f"sequence {number} of {len(results)} has no score ({result.status}): {detail}"
        if result.status is Status.EXPIRED:
            raise Unavailable(message)
        raise ItemFailed(message, by_model=result.status in (Status.NON_FINITE, Status.FAILED))
    return [result.score for result in results if result.score is not None]
