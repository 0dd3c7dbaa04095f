"""verl 0.9: a custom reward function, and a reward manager that knows the prompt. Only the manager imports verl.

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://plaudit_client.adapters.verl
    reward.reward_manager.name=PlauditRewardManager

verl cannot mask a single rollout, so a rollout without a score raises an error and stops the run.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from plaudit_client.adapters.endings import EosTokenId, as_eos_ids, has_ended
from plaudit_client.client import RewardClient
from plaudit_client.errors import InvalidArgument, PlauditError
from plaudit_client.scores import Score

_TIMEOUT_S = 600.0
_MAX_CONCURRENCY = 64  # verl asks for one rollout at a time


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    prompt_key: str = "prompt",
    **options: Any,
) -> dict[str, Any]:
    """A reward function for `reward.custom_reward_function`, whose `reward_kwargs` are the arguments below.

    verl does not pass the prompt to a reward function, so the column `extra_info` of the data must hold the prompt.
    `PlauditRewardManager` does not need that column.

    Args:
        data_source: Passed by verl; not used.
        solution_str: The completion.
        ground_truth: Passed by verl; not used.
        extra_info: The data's column of that name; holds the prompt, as a chat or a text.
        url: As for `RewardClient`; None: PLAUDIT_URL.
        prompt_key: Key of the prompt in `extra_info`.
        options: `model`, `raw`, `truncation` of `RewardClient.score`. Other options, which verl adds, are not used.

    Returns:
        The same keys every time: `score`, `num_tokens`, `truncated`.

    Raises:
        InvalidArgument: there is no prompt.
        PlauditError: there is no score.
    """
    prompt = (extra_info or {}).get(prompt_key)
    if prompt is None:
        raise InvalidArgument(
            f'extra_info: has no "{prompt_key}", but a reward model scores a completion together with its prompt; '
            "add this column to the data, or use PlauditRewardManager"
        )
    known = {key: value for key, value in options.items() if key in {"model", "raw", "truncation"}}
    score = await _score(url, _to_item(prompt, solution_str, finished=True), known)
    return {"score": score.score, "num_tokens": score.num_tokens, "truncated": score.truncated}


def _to_item(prompt: Any, completion: str, *, finished: bool) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "completions": [completion], "finished": finished}
    return {"messages": list(prompt), "completions": [completion], "finished": finished}


async def _score(url: str | None, item: Mapping[str, Any], options: Mapping[str, Any]) -> Score:
    """The score of one rollout.

    Raises:
        PlauditError: there is none.
    """
    future = _client(url, os.getpid()).submit([item], timeout_s=_TIMEOUT_S, **options)
    (score,) = await asyncio.wrap_future(future)
    if not score.ok:
        raise PlauditError(f"a rollout has no score: {score.status}, {score.detail}")
    return score


@cache
def _client(url: str | None, _: int) -> RewardClient:
    """One client for each URL in each process."""
    return RewardClient(url, max_concurrency=_MAX_CONCURRENCY)


def __getattr__(name: str) -> Any:
    """Make `PlauditRewardManager` when it is asked for: only then is verl needed."""
    if name == "PlauditRewardManager":
        return _reward_manager_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _listed_eos_ids(tokenizer: Any) -> frozenset[int]:
    """Those in the generation config of the checkpoint that verl has loaded the tokenizer from, if it has one."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except OSError:
        return frozenset()
    return as_eos_ids(config.eos_token_id)


@cache
def _reward_manager_class() -> type[Any]:
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

    class PlauditRewardManager(RewardManagerBase):  # type: ignore[misc]  # verl has no types
        """Scores chats with the reward model's own template; the service is that of PLAUDIT_URL.

        Attributes:
            url: Another URL, to be set in a subclass.
            options: `model`, `raw`, `truncation` of `RewardClient.score`, likewise.
            eos_token_id: What ends a turn of the policy, likewise; None: every EOS of its tokenizer and of the
                generation_config.json beside it.
        """

        url: str | None = None
        options: Mapping[str, Any] = {}
        eos_token_id: EosTokenId = None

        def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **_: Any) -> None:
            super().__init__(config, tokenizer, compute_score)
            given = as_eos_ids(self.eos_token_id)
            self._eos_ids = given or as_eos_ids(tokenizer.eos_token_id) | _listed_eos_ids(tokenizer)

        async def run_single(self, data: Any) -> dict[str, Any]:
            """The score of the last sequence of a rollout.

            Raises:
                PlauditError: there is none.
            """
            rollout = data[-1]
            response_ids = rollout.batch["responses"]
            # Several sequences of a rollout are padded together: then the mask's end is not the completion's.
            length = rollout.non_tensor_batch.get("response_len")
            if length is None:
                length = rollout.batch["attention_mask"][-len(response_ids) :].sum()
            token_ids: Sequence[int] = response_ids[: int(length)].tolist()
            finished = has_ended(token_ids, self._eos_ids)
            completion = self.tokenizer.decode(token_ids, skip_special_tokens=True)
            item = _to_item(rollout.non_tensor_batch["raw_prompt"], completion, finished=finished)
            score = await _score(self.url, item, self.options)
            about = {"num_tokens": score.num_tokens, "truncated": score.truncated}
            return {"reward_score": score.score, "reward_extra_info": about}

    return PlauditRewardManager
