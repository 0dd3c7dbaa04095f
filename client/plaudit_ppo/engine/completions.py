"""What is asked of an engine for one rollout, and what it has to answer. Pure: knows no HTTP.

The routes and fields are those of vLLM 0.32 (`/v1/completions`).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plaudit_ppo.rollout.completion_text import StopStrings
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.rollouts import Rollouts

_BYTES_PER_TOKEN = 1024  # of an answer: its id, its text and its logprob


class AnswerError(ValueError):
    """An engine's answer is no completion of what it was asked for; the message says why."""


@dataclass(frozen=True)
class Completion:
    """One completion: its tokens with the EOS, their logprobs under the tempered distribution, and whether it ended."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """What is the same for all completions of a run.

    Attributes:
        temperature: divides the logits, after 1e-7 is added to it as in all passes (`rollout/forward`).
        max_tokens: a completion without EOS is cut here.
        eos_ids: each ends a completion and belongs to it.
        vocabulary: how many ids the policy has.
        stop: what ends a completion besides; None: nothing.
        greedy: the likeliest tokens instead of sampled ones.
    """

    temperature: float
    max_tokens: int
    eos_ids: tuple[int, ...]
    vocabulary: int
    stop: StopStrings | None = None
    greedy: bool = False


def rollout_seed(seed: int, iteration: int, index: int) -> int:
    """The seed of one rollout, a function of the run's seed, the iteration, and its place in the rollout batch.

    The place is counted over all processes, so that two of them sample what one would.
    """
    digest = hashlib.sha256(repr((seed, "engine", iteration, index)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def completion_request(prompt_ids: Sequence[int], sampling: Sampling, *, model: str, seed: int) -> dict[str, Any]:
    """The JSON that asks for one completion.

    Every field that a server could have a default of its own for is sent.
    """
    return {
        "model": model,
        "prompt": list(prompt_ids),
        "seed": seed,
        "n": 1,
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if sampling.greedy else sampling.temperature + 1e-7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        # What ends a completion is the trainer's to say, not the engine's copy of generation_config.json.
        "ignore_eos": True,
        "stop_token_ids": list(sampling.eos_ids),
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **_stop_fields(sampling.stop),
    }


def _stop_fields(stop: StopStrings | None) -> dict[str, Any]:
    """What ends a completion early at a text; through which token it goes is for `parse_completion` to say.

    Special tokens count as text, as they do here.
    """
    if stop is None:
        return {}
    return {"stop": list(stop.texts), "include_stop_str_in_output": True, "skip_special_tokens": False}


def max_answer_bytes(prompt_ids: Sequence[int], sampling: Sampling) -> int:
    """How long the answer to `completion_request` may be."""
    return 64 * 1024 + 16 * len(prompt_ids) + _BYTES_PER_TOKEN * sampling.max_tokens


def parse_completion(body: bytes, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
    """The completion in an answer, checked down to each number.

    Raises:
        AnswerError: it is not one, or not one of this prompt under these limits.
    """
    choice = _only_choice(body)
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and echoed != list(prompt_ids):
        raise AnswerError("it completes another prompt than the one that was sent")
    ids = choice.get("token_ids")
    if not (isinstance(ids, list) and ids and all(type(number) is int for number in ids)):
        raise AnswerError("it has no token ids; the engine has to support return_token_ids, as vLLM 0.32 does")
    if not all(0 <= number < sampling.vocabulary for number in ids):
        raise AnswerError(f"it has token {max(ids)}, and the policy's vocabulary ends at {sampling.vocabulary - 1}")
    end = sampling.stop.find(prompt_ids, ids) if sampling.stop else None
    if end is not None and not any(number in sampling.eos_ids for number in ids[: end - 1]):
        finished = True  # whatever the engine has sampled behind it
    else:
        end, finished = len(ids), _is_finished(ids, choice.get("finish_reason"), sampling)
    return Completion(ids[:end], _logprobs(choice, len(ids))[:end], finished)


def _only_choice(body: bytes) -> Mapping[str, Any]:
    try:
        choices = json.loads(body)["choices"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AnswerError("it is not JSON with choices") from error
    if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
        raise AnswerError("it has not exactly one choice")
    choice: Mapping[str, Any] = choices[0]
    return choice


def _is_finished(ids: Sequence[int], reason: Any, sampling: Sampling) -> bool:
    """Whether the completion ended by itself; an answer that is cut anywhere else is no completion."""
    ends = [place for place, number in enumerate(ids) if number in sampling.eos_ids]
    if reason == "stop" and ends == [len(ids) - 1] and len(ids) <= sampling.max_tokens:
        return True
    if reason == "length" and not ends and len(ids) == sampling.max_tokens:
        return False
    raise AnswerError(
        f"it has {len(ids)} tokens of {sampling.max_tokens}, {len(ends)} of them an EOS, and its "
        f"finish_reason is {reason!r}: it is not a whole completion"
    )


def _logprobs(choice: Mapping[str, Any], count: int) -> list[float]:
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not (isinstance(values, list) and len(values) == count and all(map(_is_number, values))):
        raise AnswerError("it does not have a logprob for each token; start the engine without a limit on logprobs")
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def to_rollouts(
    prompts: Sequence[Sequence[int]], completions: Sequence[Completion], *, pad_id: int, device: torch.device
) -> Rollouts:
    """Rollouts of some prompts and their completions.

    Args:
        prompts: token ids.
        completions: one for each prompt.
        pad_id: written before prompts and after completions.
        device: of the tensors.
    """
    ids, mask = pad_left(prompts, pad_id)
    T = max(len(completion.ids) for completion in completions)
    completion_ids = torch.full((len(completions), T), pad_id)
    completion_mask = torch.zeros(len(completions), T, dtype=torch.bool)
    logprobs = torch.zeros(len(completions), T)
    for row, completion in enumerate(completions):
        length = len(completion.ids)
        completion_ids[row, :length] = torch.tensor(completion.ids)
        completion_mask[row, :length] = True
        logprobs[row, :length] = torch.tensor(completion.logprobs)
    return Rollouts(
        prompt_ids=ids.to(device),
        prompt_mask=mask.to(device),
        completion_ids=completion_ids.to(device),
        completion_mask=completion_mask.to(device),
        finished=torch.tensor([completion.finished for completion in completions], device=device),
        sampled_logprobs=logprobs.to(device),
    )
