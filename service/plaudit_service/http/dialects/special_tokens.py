"""Special tokens that a policy's tokenizer leaves in a decoded text. Pure; knows no tokenizer.

A policy's text that is scored as it stands is right only where the reward model's tokenizer knows these tokens, too:
otherwise it would take them for words, and give another score than for the chat that was meant.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from plaudit_service.items import ChatItem, Item, PromptItem, TextItem

# More tokens at an end than any tokenizer leaves there.
MAX_AT_END = 8


class SpecialTokens(Protocol):
    """What counts as a special token of a policy."""

    def find(self, text: str) -> Iterator[str]:
        """Each one in a text that was decoded."""

    def last(self, text: str) -> "LastToken | None":
        """The one that ends a turn at the very end of a text, spaces aside; None: there is none."""


@dataclass(frozen=True)
class LastToken:
    """A token at the end of a text: where it begins, and whether it only pads, which says nothing of an end."""

    start: int
    pads: bool


def find_foreign(items: Sequence[Item], tokens: SpecialTokens, knows: Callable[[str], bool]) -> tuple[int, str] | None:
    """The first special token that a tokenizer does not know, and the number of its item."""
    for number, item in enumerate(items):
        for text in _texts(item):
            for token in tokens.find(text):
                if not knows(token):
                    return number, token
    return None


def strip_end(text: str, tokens: SpecialTokens) -> tuple[str, bool]:
    """A completion without the special tokens at its end, and whether it was finished: not all of them only pad."""
    finished = False
    for _ in range(MAX_AT_END):
        last = tokens.last(text)
        if last is None:
            break
        text, finished = text[: last.start], finished or not last.pads
    return text, finished


def any_of(tokens: Iterable[str]) -> str:
    """The regular expression of any of some texts, the longest first."""
    return "|".join(map(re.escape, sorted(tokens, key=lambda token: (-len(token), token))))


def _texts(item: Item) -> Iterator[str]:
    match item:
        case TextItem():
            yield item.text
        case PromptItem():
            yield item.prompt + (item.completion or "")
        case ChatItem():
            yield from item.completions or ()
