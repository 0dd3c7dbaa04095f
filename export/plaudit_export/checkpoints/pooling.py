"""The pad token decides which token of a text a decoder scores: the last one that is not it.

A trainer sets it in memory, and beside an adapter only the tokenizer keeps it.
"""

from typing import Any

from plaudit_export.errors import SourceError


def say_pad(source: str, model: Any, tokenizer: Any, token: str) -> None:
    """Give the model the pad token that the user names; "" is none, so that the last token is scored.

    Raises:
        SourceError: neither the tokenizer nor the model has it.
    """
    pad = tokenizer.get_vocab().get(token) if token else None
    if token and (pad is None or pad >= _num_tokens(model)):
        where = "tokenizer" if pad is None else "model"
        raise SourceError(f"--pad-token {token!r}: the {where} of {source} has no such token")
    _set(model, pad)


def settle_adapters_pad(model: Any, tokenizer: Any, *, has_tokenizer: bool) -> list[str]:
    """Give the model below an adapter the pad token that the adapter's trainer set; a note where that is another.

    Trainers set the config's pad token to the tokenizer's, or to EOS where that has none, and save it with the
    tokenizer alone.

    Args:
        model: below the adapter.
        tokenizer: the adapter's, or the base's where the adapter has none.
        has_tokenizer: whether it is the adapter's.
    """
    configured = model.config.get_text_config().pad_token_id
    whose = "adapter's" if has_tokenizer else "base's"
    if configured is not None and (not has_tokenizer or tokenizer.pad_token_id is None):
        return []
    if tokenizer.pad_token_id is not None:
        pad, token, why = tokenizer.pad_token_id, tokenizer.pad_token, f"trainers set that of the {whose} tokenizer"
    else:
        pad, token, why = tokenizer.eos_token_id, tokenizer.eos_token, "the tokenizer has none, and trainers set EOS"
    if pad is None or pad == configured:
        return []
    was = "no pad token" if configured is None else f"the pad token {configured}"
    taken = f"{token!r} ({pad}) is taken"
    if pad >= _num_tokens(model):
        pad, taken = None, f"{token!r} ({pad}) is not in the model, so the last token is scored"
    _set(model, pad)
    return [f"the base's config has {was}; {why}: {taken} (--pad-token TOKEN, or '' for none)"]


def _num_tokens(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _set(model: Any, pad: int | None) -> None:
    model.config.pad_token_id = pad
    model.config.get_text_config().pad_token_id = pad
