"""Which tokens end a completion of a policy. Knows nothing of sampling."""

import logging
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.rollout.prompts import ChatTemplateError, render_chat

_log = logging.getLogger(__name__)
_ANSWER = "answer"  # what stands for an assistant's message in a chat that shows how the template ends a turn


def eos_token_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, are_chats: bool) -> tuple[int, ...]:
    """Every token that ends a completion: of the tokenizer, of the generation config, and of the chat template.

    As transformers' `generate`, but for one case: a single id that the generation config has only from config.json,
    where it may be the default of its class, counts only if it is a special token of the tokenizer. What is taken or
    left out beyond the two lists is logged.

    Args:
        policy: whose generation config may name several.
        tokenizer: the policy's.
        are_chats: whether prompts are rendered by the chat template.

    Returns:
        The tokenizer's first, each once.

    Raises:
        ConfigError: there is none.
    """
    special = _special_tokens(tokenizer)
    ids = [*_as_ids(tokenizer.eos_token_id), *_listed_ids(policy, special, own=_as_ids(tokenizer.eos_token_id))]
    end = _turn_end(tokenizer, special) if are_chats else None
    if end is not None and end not in ids:
        _log.warning(
            "the policy's chat template ends a turn with %s (%d), which neither tokenizer nor generation_config.json "
            "names as EOS; completions end there too",
            special[end],
            end,
        )
        ids.append(end)
    if not ids:
        raise ConfigError(
            "the policy's tokenizer has no EOS token and its generation_config.json names none, so no completion could "
            "ever end; set eos_token"
        )
    return tuple(dict.fromkeys(ids))


def no_ending(config: PPOConfig, eos_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What to say, and to look at, where no completion of an iteration has ended."""
    consequence = {
        "replace": f", so every score became {config.missing_eos_score:g} (missing_eos_score)",
        "subtract": f", so every score was lowered by {config.missing_eos_penalty:g} (missing_eos_penalty)",
        "off": "",
    }[config.missing_eos]
    names = ", ".join(f"{tokenizer.convert_ids_to_tokens(number)} ({number})" for number in eos_ids)
    other_remedy = "" if config.missing_eos == "off" else " or set missing_eos"
    return (
        f"no completion of an iteration ended within {config.max_completion_tokens} tokens (max_completion_tokens)"
        f"{consequence}; completions end at {names}: if the policy ends its turns with another token, list it as "
        f"eos_token_id in its generation_config.json, else raise max_completion_tokens{other_remedy}"
    )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _as_ids(value: int | Sequence[int] | None) -> list[int]:
    """What transformers calls an `eos_token_id`."""
    return [] if value is None else [int(value)] if isinstance(value, int) else [int(number) for number in value]


def _listed_ids(policy: PreTrainedModel, special: dict[int, str], *, own: Sequence[int]) -> list[int]:
    """Those of the generation config."""
    listed = getattr(getattr(policy, "generation_config", None), "eos_token_id", None)
    is_copied = isinstance(listed, int) and listed == getattr(policy.config, "eos_token_id", None)
    if is_copied and listed not in (*own, *special):
        _log.warning(
            "the policy's config.json names token %d as EOS, which is no special token of its tokenizer and ends no "
            "completion here; if it should, list it with the others as eos_token_id in generation_config.json",
            listed,
        )
        return []
    return _as_ids(listed)


def _turn_end(tokenizer: PreTrainedTokenizerBase, special: dict[int, str]) -> int | None:
    """The special token that the chat template writes right behind an assistant's message, if it does."""
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render_chat(chat, tokenizer, add_generation_prompt=False)
    except ChatTemplateError:
        return None
    behind = text.rpartition(_ANSWER)[2].lstrip()
    ends = [number for number, token in special.items() if behind.startswith(token)]
    return max(ends, key=lambda number: len(special[number]), default=None)
