"""Texts that end a completion, as EOS does. Knows nothing of sampling."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

# A token may bring no text of its own, or a part of a letter: so many more are looked at than the text can have.
_SPARE_TOKENS = 8


def stop_check(stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], bool] | None:
    """Whether the tokens of a completion have come to one of the texts; None: there are no such texts.

    Only the end is decoded, which is long enough for any of them.
    """
    if not stop:
        return None
    longest = max(len(text.encode()) for text in stop) + _SPARE_TOKENS

    def has_stopped(ids: Sequence[int]) -> bool:
        text = tokenizer.decode(ids[-longest:], clean_up_tokenization_spaces=False)
        return any(end in text for end in stop)

    return has_stopped


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A completion's text up to the first of the texts that end it."""
    places = [place for place in (text.find(end) for end in stop) if place >= 0]
    return text[: min(places)] if places else text
