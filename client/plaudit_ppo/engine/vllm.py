"""One vLLM server, by its routes. Knows no rollouts, no weights in memory, no torch.

Everything that goes wrong is an `EngineError` that names the address. Each call has a limit of time, and while one is
in flight `/health` is polled: requests hang for ever when the engine's core has died behind its HTTP server.
"""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from plaudit_client.errors import ConnectionFailed
from plaudit_client.settings import resolve_headers
from plaudit_client.transport import HttpRequest, HttpResponse, Network
from plaudit_ppo.errors import ConfigError, EngineError, one_line

ADAPTER = "plaudit-policy"  # the name under which an engine serves the run's LoRA adapter

_COMPLETIONS = "/v1/completions"
_POLL_S = 2.0
_POLL_TIMEOUT_S = 10.0
_MAX_MISSED_POLLS = 3
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_MAX_REASON_CHARS = 300
_T = TypeVar("_T")


@dataclass(frozen=True)
class Connection:
    """How engines are reached.

    Attributes:
        timeout_s: limit of one request.
        concurrency: requests in flight to one engine.
        key: sent as a bearer token; empty: none.
        poll_s: seconds from one look at /health to the next.
    """

    timeout_s: float
    concurrency: int
    key: str = ""
    poll_s: float = _POLL_S


@dataclass(frozen=True)
class Served:
    """What an engine says that it serves: the model's name, and its context in tokens (None: it does not say)."""

    model: str
    max_model_len: int | None


def read_key(file: str | None) -> str:
    """The key in a file; without a file, none.

    Raises:
        ConfigError: the file cannot be read, holds none, or one that cannot stand in a header.
    """
    if file is None:
        return ""
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"engine_key_file: {file} cannot be read ({one_line(error)})") from error
    if not (key and key.isascii() and key.isprintable()):
        raise ConfigError(f"engine_key_file: {file} holds no key; it has to be one line of printable ASCII")
    return key


class Engine:
    """A vLLM server, watched from now on; made inside of an event loop, in which its methods may run at the same time.

    Args:
        url: base URL of the server.
        connection: limits and key.

    Attributes:
        url: its address.
        retries: requests that were sent a second time.
    """

    def __init__(self, url: str, connection: Connection) -> None:
        self.url = url
        self.retries = 0
        self._connection = connection
        self._headers = {**resolve_headers(connection.key), "Content-Type": "application/json"}
        self._network = Network(max_age_s=float("inf"))
        self._slots = asyncio.Semaphore(connection.concurrency)
        loop = asyncio.get_running_loop()
        self._death: asyncio.Future[None] = loop.create_future()
        self._watch = loop.create_task(self._watch_health())

    async def close(self) -> None:
        """Closes the connections; before, whoever runs the loop cancels what runs in it."""
        self._watch.cancel()
        if self._death.done():
            self._death.exception()  # or asyncio would complain that nobody has looked at it
        await self._network.close()

    async def describe(self) -> Served:
        """What it serves; the base model, whatever adapters there are."""
        cards = _json(await self._call("GET", "/v1/models"), self.url).get("data")
        base = [card for card in cards if isinstance(card, dict) and card.get("parent") is None] if cards else []
        if not base or not isinstance(base[0].get("id"), str):
            raise EngineError(f"engine {self.url}: /v1/models names no model; is it vLLM's server?")
        length = base[0].get("max_model_len")
        return Served(base[0]["id"], length if isinstance(length, int) else None)

    async def tokenize(self, text: str) -> list[tuple[int, str]]:
        """The ids that its tokenizer gives a text, each with the token that it stands for."""
        asked = {"prompt": text, "add_special_tokens": False, "return_token_strs": True}
        answer = _json(await self._call("POST", "/tokenize", asked), self.url)
        ids, tokens = answer.get("tokens"), answer.get("token_strs")
        if not (isinstance(ids, list) and isinstance(tokens, list) and len(ids) == len(tokens)):
            raise EngineError(f"engine {self.url}: /tokenize gives no ids with their tokens; is it vLLM's server?")
        return list(zip(ids, tokens, strict=True))

    async def complete(self, asked: Mapping[str, Any], *, max_answer_bytes: int) -> bytes:
        """The body of its answer to a request for a completion."""
        return await self._call("POST", _COMPLETIONS, asked, max_answer_bytes=max_answer_bytes)

    async def load_weights(self, directory: Path) -> None:
        """Has it take whole weights in place of its own, with nothing in flight and nothing kept of the old ones."""
        await self._call("POST", "/pause?mode=wait")
        await self._call(
            "POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
        )
        reset = _json(await self._call("POST", "/reset_prefix_cache"), self.url)
        if reset.get("success") is not True:
            raise EngineError(f"engine {self.url}: its prefix cache of the old weights could not be reset")
        await self._call("POST", "/resume")

    async def load_adapter(self, directory: Path) -> None:
        """Has it serve an adapter as `ADAPTER`.

        Its prefix cache tells adapters apart by their directories, so every version needs a directory of its own.
        """
        await self._call(
            "POST",
            "/v1/load_lora_adapter",
            {"lora_name": ADAPTER, "lora_path": str(directory), "load_inplace": True},
        )

    async def _call(
        self,
        method: str,
        path: str,
        asked: Mapping[str, Any] | None = None,
        *,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
    ) -> bytes:
        """The body of an answer with status 200.

        Raises:
            EngineError: none came in time, it has another status or is too long, or the engine is dead.
        """
        body = None if asked is None else json.dumps(asked).encode()
        request = HttpRequest(method, self.url + path, self._headers, body, max_answer_bytes)
        async with self._slots:
            try:
                async with asyncio.timeout(self._connection.timeout_s):
                    answer = await self._unless_dead(self._send(request))
            except TimeoutError as error:
                raise EngineError(
                    f"engine {self.url}: no answer to {request.path} within {self._connection.timeout_s:g} s "
                    "(engine_timeout_s); look at the engine's log: it hangs, or is overloaded; for an overloaded "
                    "engine raise engine_timeout_s"
                ) from error
            except ConnectionFailed as error:
                raise EngineError(
                    f"engine {self.url}: no answer to {request.path} ({error}); look at the engine's log, "
                    "and restart it"
                ) from error
        if answer.status != 200:
            reason = "" if request.path == _COMPLETIONS else _reason(answer)  # which might show the prompt
            raise EngineError(
                f"engine {self.url}: {request.path} answers {answer.status}{reason}{_remedy(answer.status)}"
            )
        if len(answer.body) > max_answer_bytes:
            raise EngineError(
                f"engine {self.url}: its answer to {request.path} is longer than {max_answer_bytes} bytes"
            )
        return answer.body

    async def _send(self, request: HttpRequest) -> HttpResponse:
        """Sends a request, a second time where a connection broke: a kept one may have been closed meanwhile.

        All of them may be repeated: a completion has its seed, and the others say what shall be.
        """
        address = (await self._network.resolve(request.url))[0]
        try:
            return await self._network.send(request, address)
        except ConnectionFailed as error:
            if not error.connected:
                raise
            self.retries += 1
            return await self._network.send(request, address)

    async def _unless_dead(self, call: Coroutine[Any, Any, _T]) -> _T:
        """What a call returns.

        Raises:
            EngineError: the engine dies before it returns.
        """
        task = asyncio.create_task(call)
        either: set[asyncio.Future[Any]] = {task, self._death}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._death.result()
            return await task
        finally:
            task.cancel()

    async def _watch_health(self) -> None:
        """Looks at /health until the engine is dead: by its own word, or by its silence several times in a row."""
        request = HttpRequest("GET", self.url + "/health", self._headers)
        missed = 0
        while True:
            await asyncio.sleep(self._connection.poll_s)
            try:
                async with asyncio.timeout(_POLL_TIMEOUT_S):
                    address = (await self._network.resolve(request.url))[0]
                    status = (await self._network.send(request, address)).status
            except (TimeoutError, ConnectionFailed) as error:
                missed += 1
                trouble = f"no answer to /health, {missed} times in a row ({error or 'silence'})"
            else:
                missed = missed + _MAX_MISSED_POLLS if status != 200 else 0
                trouble = f"/health answers {status}"
            if missed >= _MAX_MISSED_POLLS:
                self._death.set_exception(
                    EngineError(f"engine {self.url}: {trouble}; it is dead: look at the engine's log, and restart it")
                )
                return


def _json(body: bytes, url: str) -> dict[str, Any]:
    """The JSON object in an answer.

    Raises:
        EngineError: there is none.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"engine {url}: its answer is not JSON; is it vLLM's server?") from error
    if not isinstance(answer, dict):
        raise EngineError(f"engine {url}: its answer is not a JSON object; is it vLLM's server?")
    return answer


def _reason(answer: HttpResponse) -> str:
    """What an error's body says, in one line of bounded length."""
    text = answer.body.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return f" ({line[:_MAX_REASON_CHARS]})" if line else ""


def _remedy(status: int) -> str:
    """What to look at, by the status of an error."""
    if status in {401, 403}:
        return "; set engine_key_file to the file of its key"
    if status == 404:
        return (
            "; start it with VLLM_SERVER_DEV_MODE=1 for weights, or --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 for an adapter, and let it see engine_sync_dir at the same path"
        )
    return "; look at the engine's log"
