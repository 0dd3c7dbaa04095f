"""A reward function for TRL's GRPOTrainer and RLOOTrainer. It does not import TRL.

trainer = GRPOTrainer(model=..., reward_funcs=reward_function("http://rm:8000"), ...)
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from plaudit_client.adapters.endings import EosTokenId, as_eos_ids, has_ended
from plaudit_client.client import RewardClient
from plaudit_client.errors import ConnectionFailed, DeadlineExceeded, InvalidArgument, PlauditError, ServiceUnavailable
from plaudit_client.items import num_sequences
from plaudit_client.protocol import Truncation
from plaudit_client.scores import Score

_log = logging.getLogger("plaudit_client")

Text = str | list[dict[str, Any]]
RewardFunction = Callable[..., Awaitable[list[float | None]]]


def reward_function(
    url: str | Sequence[str] | None = None,
    *,
    on_failure: Literal["mask", "raise"] = "mask",
    eos_token_id: EosTokenId = None,
    model: str | None = None,
    raw: bool = False,
    truncation: Truncation = "error",
    timeout_s: float = 600.0,
    name: str = "plaudit",
    client: RewardClient | None = None,
) -> RewardFunction:
    """Make a reward function for TRL that asks a scoring service, while other reward functions run.

    Chats are rendered by the reward model's own template. If prompt and completion are strings, they are concatenated
    without any change.

    Args:
        url: As for `RewardClient`.
        on_failure: `mask`: a completion without a score gives None, and TRL leaves it out of its group's baseline and
            of the loss. If a whole call fails after all retries, each of its completions gives None. `raise`: each
            of these failures stops the run. An error that a retry cannot solve (a wrong API key, another reward model
            behind the URL) is always raised.
        eos_token_id: Token that ends a turn of the policy: one id or several, such as its
            `generation_config.eos_token_id`. A completion that does not end with one of these tokens was cut at its
            length limit, and the service appends no EOS to it. None: all completions count as finished.
        model: Name of the model; None if the service has only one.
        raw: Return raw scores, without the model's normalization.
        truncation: What happens to a text longer than the reward model's limit, as for `RewardClient.score`.
        timeout_s: Time limit of one call, in seconds, retries included.
        name: Name under which TRL logs the reward.
        client: A client to use instead of a new one for `url`.

    Returns:
        An `async def` function that TRL can call.
    """
    if on_failure not in {"mask", "raise"}:
        raise InvalidArgument(f'on_failure: got {on_failure!r}; give "mask" or "raise"')
    eos_ids = as_eos_ids(eos_token_id)
    scorer = client or RewardClient(url)
    options: dict[str, Any] = {"model": model, "raw": raw, "truncation": truncation, "timeout_s": timeout_s}

    async def reward(
        prompts: list[Text], completions: list[Text], completion_ids: list[list[int]] | None = None, **columns: Any
    ) -> list[float | None]:
        finished = [True] * len(prompts)
        if completion_ids is not None and eos_token_id is not None:
            finished = [has_ended(ids, eos_ids) for ids in completion_ids]
        items = to_items(prompts, completions, finished)
        try:
            scores: Sequence[Score] = (await asyncio.wrap_future(scorer.submit(items, **options))).results
        except (ConnectionFailed, DeadlineExceeded, ServiceUnavailable) as error:
            if on_failure == "raise":
                raise
            scores = [Score("failed", None, detail=str(error))] * len(prompts)
        _report(scores, on_failure, columns)
        return [score.score for score in scores]

    reward.__name__ = reward.__qualname__ = name
    return reward


def to_items(prompts: Sequence[Text], completions: Sequence[Text], finished: Sequence[bool]) -> list[Mapping[str, Any]]:
    """Items whose sequences are the rollouts in order; neighbours with one prompt make one group.

    What a message holds besides role and content, such as `tool_calls` or `reasoning_content`, goes to the reward
    model's template; other fields are refused by name.

    Args:
        prompts: Texts or chats.
        completions: A text each, or the messages that follow the chat.
        finished: False where the completion was cut by length.
    """
    items: list[Mapping[str, Any]] = []
    rollouts = list(zip(prompts, map(_text, completions), finished, strict=True))
    for (prompt, is_text, done), group in groupby(rollouts, key=lambda it: (it[0], isinstance(it[1], str), it[2])):
        texts = [text for _, text, _ in group]
        if is_text:
            form = "prompt" if isinstance(prompt, str) else "messages"
            items.append({form: prompt, "completions": texts, "finished": done})
        else:  # messages that are more than one text: one chat each
            items += [{"messages": [*prompt, *text], "finished": done} for text in texts]
    assert sum(map(num_sequences, items)) == len(prompts)
    return items


def _text(completion: Text) -> Text:
    """The text of a completion that is one assistant's message, else its messages."""
    if isinstance(completion, str) or len(completion) != 1:
        return completion
    message = {key: value for key, value in completion[0].items() if value is not None}  # as tables have every field
    is_plain = message.keys() == {"role", "content"} and message["role"] == "assistant"
    return message["content"] if is_plain and isinstance(message["content"], str) else completion


def _report(scores: Sequence[Score], on_failure: str, columns: Mapping[str, Any]) -> None:
    """Log what failed, or raise it.

    Raises:
        PlauditError: something failed, and it shall be raised.
    """
    failed = [score for score in scores if not score.ok]
    if "log_metric" in columns and scores:
        columns["log_metric"]("scoring/failed_fraction", len(failed) / len(scores))
    if not failed:
        return
    first = (
        f"{len(failed)} of {len(scores)} completions have no score; the first: {failed[0].status}, {failed[0].detail}"
    )
    if on_failure == "raise":
        raise PlauditError(f'{first}; on_failure="mask" leaves such completions out')
    _log.warning("%s", first)
