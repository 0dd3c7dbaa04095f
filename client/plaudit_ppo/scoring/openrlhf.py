"""A service that answers OpenRLHF's requests for rewards, as a scorer. It gets texts: nothing here renders a chat.

POST {"query": [...], "prompts": [...], "labels": [...]} -> {"rewards": [...]}. OpenRLHF 0.11, openrlhf/utils/agent.py.
"""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from plaudit_client import InvalidArgument, Score, Scores
from plaudit_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidAnswer,
    RequestRejected,
    ServiceUnavailable,
)
from plaudit_client.retry import RETRYABLE_STATUSES, Timing, next_delay_s, parse_retry_after
from plaudit_client.settings import resolve_urls
from plaudit_client.transport import HttpRequest, HttpResponse, Network, Transport
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.scoring.items import Item
from plaudit_ppo.scoring.pool import Extra

PREFIX = "openrlhf+"

_BYTES_PER_REWARD = 1024  # of an answer, what it logs beside the rewards included


class OpenRLHFScorer:
    """A service of OpenRLHF's form, which counts the requests that had to be repeated. It is sent no key.

    Args:
        address: as in `scorer_urls`: `openrlhf+URL`, the URL with its path, such as /get_reward.
        timeout_s: limit of one call with its retries.
        label_column: which column of a prompt's row is its label; None: all other columns, as an object.
        connect: makes what carries the requests of one call, for tests.
        timing: clock, sleep and chance, for tests.

    Attributes:
        retries: requests repeated so far.

    Raises:
        ConfigError: the address cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float,
        label_column: str | None = None,
        connect: Callable[[], Transport] = lambda: Network(max_age_s=math.inf),
        timing: Timing | None = None,
    ) -> None:
        self.retries = 0
        self._timeout_s = timeout_s
        self._label_column = label_column
        self._connect = connect
        self._timing = timing or Timing()
        try:
            urls = resolve_urls(address.removeprefix(PREFIX))
        except InvalidArgument as error:
            raise ConfigError(f"address of a reward model {address!r}: {error}") from error
        if len(urls) > 1:
            raise ConfigError(
                f"address of a reward model {address!r}: {len(urls)} URLs, limit 1 for a server with OpenRLHF's "
                "interface"
            )
        self._url = urls[0]

    def __call__(self, items: Sequence[Item], extra: Extra = ()) -> Scores:
        """Scores items: a query is the prompt's text and the completion's behind it.

        Raises:
            InvalidArgument: an item is a chat.
            PlauditError: no answer came in time, or none that can be used.
        """
        prompts, queries, labels = [], [], []
        for number, item in enumerate(items):
            if "messages" in item:
                raise InvalidArgument(
                    f"{self._url}: the prompt is a chat, but a server with OpenRLHF's interface takes texts; give "
                    "prompts as texts, rendered by the policy's chat template"
                )
            columns = extra[number] if extra else {}
            label = dict(columns) if self._label_column is None else columns.get(self._label_column)
            for completion in item.get("completions") or [item["completion"]]:
                prompts.append(item["prompt"])
                queries.append(item["prompt"] + completion)
                labels.append(label)
        body = json.dumps({"query": queries, "prompts": prompts, "labels": labels}).encode()
        answer = asyncio.run(self._ask(body, max_answer_bytes=64 * 1024 + _BYTES_PER_REWARD * len(queries)))
        return Scores(tuple(map(_to_score, self._rewards(answer, len(queries)))))

    async def _ask(self, body: bytes, *, max_answer_bytes: int) -> bytes:
        """The body of an answer; asks again where that may help."""
        headers = {"Content-Type": "application/json"}
        request, timing = HttpRequest("POST", self._url, headers, body, max_answer_bytes), self._timing
        end, retries, transport = timing.clock() + self._timeout_s, 0, self._connect()
        try:
            while True:
                try:
                    async with asyncio.timeout(end - timing.clock()):
                        address = (await transport.resolve(self._url))[0]
                        return self._checked(await transport.send(request, address), max_answer_bytes)
                except (ConnectionFailed, ServiceUnavailable) as error:
                    delay_s = next_delay_s(
                        retries,
                        max_retries=None,
                        retry_after_s=getattr(error, "retry_after_s", None),
                        remaining_s=end - timing.clock(),
                        chance=timing.random(),
                    )
                    if delay_s is None:
                        raise
                except TimeoutError as error:
                    raise DeadlineExceeded(
                        f"{self._url}: no answer within {self._timeout_s:g} s (scorer_timeout_s)"
                    ) from error
                retries += 1
                self.retries += 1
                await timing.sleep(delay_s)
        finally:
            await transport.close()

    def _checked(self, answer: HttpResponse, max_bytes: int) -> bytes:
        if answer.status in RETRYABLE_STATUSES:
            retry_after_s = parse_retry_after(answer.headers.get("retry-after"))
            raise ServiceUnavailable(
                f"{self._url}: answers {answer.status}", status=answer.status, retry_after_s=retry_after_s
            )
        if answer.status != 200:
            raise RequestRejected(f"{self._url}: answers {answer.status}; look at its log", status=answer.status)
        if len(answer.body) > max_bytes:
            raise InvalidAnswer(f"{self._url}: its answer is longer than {max_bytes} bytes")
        return answer.body

    def _rewards(self, body: bytes, count: int) -> list[Any]:
        try:
            rewards = json.loads(body)["rewards"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidAnswer(f"{self._url}: its answer has no rewards") from error
        if not (isinstance(rewards, list) and len(rewards) == count):
            raise InvalidAnswer(f"{self._url}: its answer does not have {count} rewards, one for each query")
        return rewards


def _to_score(reward: Any) -> Score:
    """A number is a score, whatever else is none."""
    if isinstance(reward, int | float) and not isinstance(reward, bool) and math.isfinite(reward):
        return Score("ok", float(reward))
    return Score("failed", None, detail="its reward is not a finite number")
