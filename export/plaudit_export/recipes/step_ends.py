"""What a step is to a process reward model: read from its format, or as the user says.

Trainers keep neither the separator of the steps nor how they were tokenized. Knows nothing of models.
"""

from typing import Any

from plaudit_export.errors import SourceError
from plaudit_export.recipes.named_tokens import named_token
from plaudit_service.bundles.bundle import SpecialToken, Steps


def settle_steps(source: str, tokenizer: Any, token: str | None, end: str | None) -> Steps:
    r"""The rule of the steps.

    With a token, texts are encoded whole, and each of its id ends a step: Qwen2.5-Math-PRM, Math-Shepherd. With a text
    alone they are made as TRL's `PRMTrainer.tokenize_row` makes them: steps and separators encoded one by one, and the
    number read at the separator's last token.

    Args:
        source: the checkpoint, for messages.
        tokenizer: its own.
        token: that ends each step, as it stands in the vocabulary, or `id:N`.
        end: what stands behind each step; None: the token's text.

    Raises:
        SourceError: neither is given, or they do not fit each other or the tokenizer.
    """
    if token is not None:
        return _by_token(source, tokenizer, token, end)
    if end is None:
        raise SourceError(
            f"{source}: is a process reward model, and nothing on disk says what ends a step; give --step-end TEXT, "
            r"the step_separator of TRL's trainer (its default: '\n'), or --step-token TOKEN"
        )
    ids = _ids(tokenizer, end)
    if not ids or tokenizer.decode(ids[-1:]) != end:
        raise SourceError(
            f"--step-end {end!r}: the tokenizer of {source} makes {len(ids)} tokens of it, and the last one alone is "
            "not this text, so a step could hold it; name the token that ends a step with --step-token, too"
        )
    return Steps(token=_token(tokenizer, ids[-1]), end=end, apart=True)


def _by_token(source: str, tokenizer: Any, token: str, end: str | None) -> Steps:
    token_id = named_token(source, tokenizer, token, flag="--step-token")
    if not 0 <= token_id < len(tokenizer):
        raise SourceError(f"--step-token {token}: the tokenizer of {source} has {len(tokenizer)} tokens")
    end = tokenizer.decode([token_id]) if end is None else end
    num_there = _ids(tokenizer, f"a{end}").count(token_id) - _ids(tokenizer, "a").count(token_id)
    if num_there != 1:
        raise SourceError(
            f"--step-end {end!r}: after a word this text contains the token {token} {num_there} times, but one "
            "step end must contain it once; give the text that the trainer put after each step"
        )
    return Steps(token=_token(tokenizer, token_id), end=end)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer([text], add_special_tokens=False)["input_ids"][0])


def _token(tokenizer: Any, token_id: int) -> SpecialToken:
    return SpecialToken(text=str(tokenizer.convert_ids_to_tokens(token_id)), id=token_id)
