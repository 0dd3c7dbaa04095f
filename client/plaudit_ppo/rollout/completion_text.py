"""A completion as text, and the texts that end one as EOS does. Knows nothing of sampling."""

from bisect import bisect_left
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# A token may bring no text of its own, or a part of a letter: so many more are decoded than the text can have.
_SPARE_TOKENS = 8


class StopStrings:
    """Texts that end a completion with the token that brings one of them to its end.

    Args:
        texts: at least one.
        tokenizer: the policy's.

    Attributes:
        texts: as they were given.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.texts = tuple(texts)
        self._tokenizer = tokenizer
        self._window = max(len(text.encode()) for text in texts) + _SPARE_TOKENS

    def end_here(self, ids: Sequence[int], num_tokens: int) -> bool:
        """Whether the last token brings a stop string to its end; only the last ones are decoded.

        Args:
            ids: of prompt and completion.
            num_tokens: of the completion.
        """
        start = len(ids) - min(num_tokens, self._window)
        return self._are_in(text_behind(ids[max(0, start - _SPARE_TOKENS) : start], ids[start:], self._tokenizer))

    def find(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> int | None:
        """How many tokens a completion has through its first stop string; None: it has none."""

        def are_in_first(count: int) -> bool:
            return self._are_in(text_behind(prompt_ids, completion_ids[:count], self._tokenizer))

        if not are_in_first(len(completion_ids)):
            return None
        return 1 + bisect_left(range(1, len(completion_ids)), True, key=are_in_first)

    def _are_in(self, text: str) -> bool:
        return any(stop in text for stop in self.texts)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A completion's text up to the first of the texts that end it."""
    places = [place for place in (text.find(end) for end in stop) if place >= 0]
    return text[: min(places)] if places else text


def text_behind(prompt_ids: Sequence[int], completion_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """What a completion adds to its prompt's text.

    It is decoded behind the prompt and the prompt's text taken off, because many tokenizers drop the space before the
    first token of a text.
    """
    before: str = tokenizer.decode(list(prompt_ids), clean_up_tokenization_spaces=False)
    whole: str = tokenizer.decode([*prompt_ids, *completion_ids], clean_up_tokenization_spaces=False)
    if whole.startswith(before):
        return whole[len(before) :]
    alone: str = tokenizer.decode(list(completion_ids), clean_up_tokenization_spaces=False)
    return alone
