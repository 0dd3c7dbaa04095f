"""The texts that show whether a bundle scores as its checkpoint does: built-in ones, and the user's.

Many alphabets, code, control tokens in the text, empty turns, one token, the longest text, shared prompts. Knows
nothing of models.
"""

# ruff: noqa: RUF001  texts in other alphabets are what this file is for
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plaudit_export.errors import SourceError
from plaudit_service.errors import InvalidRequest
from plaudit_service.items import ChatItem, Message, check_request

Item = dict[str, Any]

PROMPT = (
    "Human: I have to give a short talk about the history of tea next week, to people who know nothing of it. "
    "What should I tell them first, and how do I keep it from becoming a list of dates?\n\nAssistant:"
)

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln! Straße, Äpfel und ein „Zitat“ – naïve façade, œuvre.",
    "今天天气很好，我们去公园散步吧。请问附近有没有好吃的餐厅？",
    "昨日、友達と一緒に映画を見ました。とても面白かったです！",
    "오늘은 날씨가 정말 좋네요. 산책하러 갈까요?",
    "مرحبا، كيف حالك اليوم؟ أتمنى لك يوما سعيدا.",
    "नमस्ते, आप कैसे हैं? यह एक परीक्षण वाक्य है।",
    "Привет! Как дела? Это проверка кириллицы.",
    "Emoji 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 and e\u0301 against \u00e9, zero\u200bwidth, and a non\u00a0breaking space.",
    'def score(text: str) -> float:\n\tif not text:\n\t\treturn 0.0  # "nothing"\n\treturn len(text) / 7.5\n',
    "  leading,   inner    and trailing spaces \t and\r\nline breaks\n\n\n",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$ see https://example.org/a?b=c&d=%20#e",
    "a",
    "No.",
)

COMPLETIONS = (
    " Begin with one cup: who drank it, where, and why it had travelled so far.",
    " List all the dates.",
    "",
)

CHATS: tuple[list[dict[str, str]], ...] = (
    [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris. Do you want to know more?"},
    ],
    [
        {"role": "user", "content": "Tell me a joke."},
        {"role": "assistant", "content": "Why did the token cross the batch?"},
        {"role": "user", "content": "  Why?\n"},
        {"role": "assistant", "content": "To get to the other padding 😀"},
    ],
    [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Wie geht es dir?"},
        {"role": "assistant", "content": "Gut."},
    ],
    [{"role": "user", "content": "Say nothing."}, {"role": "assistant", "content": ""}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": "You wrote nothing."}],
)


def text_items(special_texts: Mapping[str, str]) -> list[Item]:
    """Plain texts, and texts that hold the model's own control tokens.

    Args:
        special_texts: `bos` and `eos`, as far as the tokenizer has them.
    """
    items: list[Item] = [{"text": text} for text in TEXTS]
    if bos := special_texts.get("bos"):
        items.append({"text": f"{bos}This text begins with BOS already."})
    if eos := special_texts.get("eos"):
        items.append({"text": f"This text ends with EOS already.{eos}"})
        items.append({"text": f"A user wrote {eos} in the middle.", "finished": False})
    return items


def prompt_items() -> list[Item]:
    """Several completions of one prompt, one of them empty, and a cut within a word."""
    items: list[Item] = [{"prompt": PROMPT, "completion": completion} for completion in COMPLETIONS]
    return [*items, {"prompt": "What is un", "completion": "believable?", "finished": False}]


def chat_items() -> list[Item]:
    """Chats, also with a system turn and with empty turns, which some templates refuse."""
    return [{"messages": chat} for chat in CHATS]


def token_items(long_ids: list[int], num_tokens: int, pad_token_id: int | None) -> list[Item]:
    """One token, two, the longest text; and, for a decoder with a pad token, padding at the end and nothing else.

    Args:
        long_ids: ids of any text; repeated as far as needed.
        num_tokens: length of the longest text.
        pad_token_id: of a decoder's config, whose pooling looks for it.
    """
    repeated = (long_ids * (num_tokens // len(long_ids) + 1))[:num_tokens]
    sequences = [long_ids[-1:], long_ids[:2], repeated]
    if pad_token_id is not None:
        sequences += [[*long_ids[:5], pad_token_id, pad_token_id], [pad_token_id, pad_token_id]]
    return [{"token_ids": ids} for ids in sequences if len(ids) <= num_tokens]


def long_pair(item: Item, num_free_tokens: int) -> Item:
    """The longest pair: `item` with as many words more as tokens are free; the word is one token everywhere."""
    return {**item, "completion": item["completion"] + " a" * num_free_tokens}


def read_items(option: str, path: Path) -> list[Item]:
    """The user's texts: one wire item per line; a group of completions becomes one item for each.

    Args:
        option: that the file was given for.
        path: of the file.

    Raises:
        SourceError: says which line, and why.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON keeps other line ends in its strings
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{option} {path}: cannot be read ({error})") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            (checked,) = check_request({"items": [item]}).items
        except (ValueError, RecursionError, InvalidRequest) as error:
            raise SourceError(f"{option} {path} line {number}: {error}; give one item of POST /score") from error
        if isinstance(checked, ChatItem):
            item["messages"] = [_as_read(*pair) for pair in zip(item["messages"], checked.messages, strict=True)]
        items += _one_by_one(item)
    if not items:
        raise SourceError(f"{option} {path}: holds no items; give one item of POST /score per line")
    return items


def _as_read(given: Mapping[str, Any], message: Message) -> dict[str, Any]:
    """What a chat template gets of a message, in the file's order of keys."""
    read = message.to_template()
    return {name: read[name] for name in given if name in read}


def _one_by_one(item: Item) -> list[Item]:
    """The sequences of an item as items of their own."""
    completions = item.get("completions")
    if completions is None:
        return [item]
    rest = {name: value for name, value in item.items() if name != "completions"}
    if "messages" not in item:
        return [{**rest, "completion": completion} for completion in completions]
    turns = [{"role": "assistant", "content": completion} for completion in completions]
    return [{**rest, "messages": [*item["messages"], turn]} for turn in turns]
