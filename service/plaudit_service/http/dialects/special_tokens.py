"""Special tokens that a policy's tokenizer leaves in a decoded text. Pure; knows nothing of models.

A policy's text that is scored as it stands is right only where the reward model's tokenizer knows these tokens, too:
otherwise it would take them for words, and give another score than for the chat that was meant.
"""

import re
from collections.abc import Callable, Iterator

from plaudit_service.items import ChatItem, Item, PromptItem, TextItem

# How the tokenizers of ChatML, Llama 3, Phi, DeepSeek, Gemma, Mistral and BERT models write theirs.
_ANYWHERE = re.compile(
    r"<\|[^<>|\s]{1,64}\|>|<\uff5c[^<>\s]{1,64}\uff5c>|<(?:bos|eos|pad|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|CLS|SEP|PAD)\]"
)
# In the middle of a text they may be HTML.
_AT_START, _AT_END = "<s>", "</s>"
_MAX_AT_END = 8


def find_foreign(items: list[Item], knows: Callable[[str], bool]) -> tuple[int, str] | None:
    """The first special token that a tokenizer does not know, and the number of its item."""
    for number, item in enumerate(items):
        for text in _texts(item):
            for token in _special_tokens(text):
                if not knows(token):
                    return number, token
    return None


def strip_end(text: str) -> tuple[str, bool]:
    """A completion without the special tokens at its end, and whether there were any: it was not cut by length."""
    finished = False
    for _ in range(_MAX_AT_END):
        trimmed = text.rstrip()
        start = max(trimmed.rfind("<"), trimmed.rfind("["))
        if start < 0 or not (_ANYWHERE.fullmatch(trimmed, start) or trimmed[start:] == _AT_END):
            break
        text, finished = trimmed[:start], True
    return text, finished


def _texts(item: Item) -> Iterator[str]:
    match item:
        case TextItem():
            yield item.text
        case PromptItem():
            yield item.prompt + (item.completion or "")
        case ChatItem():
            yield from item.completions or ()


def _special_tokens(text: str) -> Iterator[str]:
    if text.startswith(_AT_START):
        yield _AT_START
    if text.rstrip().endswith(_AT_END):
        yield _AT_END
    for match in _ANYWHERE.finditer(text):
        yield match.group()
