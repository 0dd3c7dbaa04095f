"""Where messages, steps and tokens stand in the text that is scored.

Pure. Knows nothing of tokenizers, templates and models.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from plaudit_service.text.token_ids import Ids

# Two of the code points that Unicode keeps free for what a program needs inside: no text has a use for them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([bes])([0-9]+){_CLOSE}")


@dataclass(frozen=True)
class Marks:
    """Where messages and steps are in a text, in code points.

    Attributes:
        messages: (start, end, number) of the content of each message that was found; None: the text is no chat.
        step_ends: where each step ends; None: nobody said.
    """

    messages: Sequence[tuple[int, int, int]] | None = None
    step_ends: Sequence[int] | None = None


NO_MARKS = Marks()


@dataclass(frozen=True, eq=False)
class Places:
    """The tokens of one sequence that a value is asked for, as columns of one length.

    Attributes:
        rows: places in the sequence that is computed.
        tokens: places among the tokens of the whole text, before any truncation.
        ends: where each token ends in the text, in code points; None where there is none.
        messages: number of the message whose content each token ends in, -1 between two; None without a chat.
        steps: number of the step that each token ends; None where every token is asked for.
    """

    rows: Ids
    tokens: Ids
    ends: Ids | None
    messages: Ids | None
    steps: Ids | None


def as_spans(offsets: Sequence[tuple[int, int]]) -> Ids:
    """(start, end) of each token in a text, neither ever falling.

    A special token that is not in the text has (0, 0) from the tokenizer: it starts and ends where the token before it
    ends.
    """
    spans = np.array(offsets, dtype=np.int64)
    spans[:, 1] = np.maximum.accumulate(spans[:, 1])
    is_added = spans[:, 0] == np.array([end for _, end in offsets])
    spans[:, 0] = np.maximum.accumulate(np.where(is_added, spans[:, 1], spans[:, 0]))
    return spans


def find_places(kept: Ids, spans: Ids | None, marks: Marks, step_tokens: Ids | None) -> Places:
    """The places of what is computed of a text.

    Args:
        kept: (T,) the tokens that are computed, among those of the whole text; growing.
        spans: (all, 2) of each token of the whole text; None where there is no text.
        marks: of the text.
        step_tokens: the token that ends each step, -1 where there is none; None: every token is asked for.
    """
    if step_tokens is None:
        rows, steps = np.arange(len(kept)), None
    else:
        rows = np.searchsorted(kept, step_tokens)
        # A step whose token was cut off, or lies behind the last one that is computed, has no value.
        is_there = kept[np.minimum(rows, len(kept) - 1)] == step_tokens
        rows, steps = rows[is_there], np.flatnonzero(is_there)
    tokens = kept[rows]
    ends = None if spans is None else spans[tokens, 1]
    messages = None if ends is None or marks.messages is None else _messages(ends, marks.messages)
    return Places(rows, tokens, ends, messages, steps)


def _messages(ends: Ids, contents: Sequence[tuple[int, int, int]]) -> Ids:
    if not contents:
        return np.full(len(ends), -1)
    starts, stops, numbers = np.array(sorted(contents)).T
    found = np.searchsorted(starts, ends) - 1  # the last content that starts before the token ends
    return np.where((found >= 0) & (ends <= stops[found]), numbers[found], -1)


def step_tokens(spans: Ids, step_ends: Sequence[int]) -> Ids:
    """The token with the last character of each step, the last one where several make that character; -1: none.

    Args:
        spans: (all, 2) of each token of a text.
        step_ends: where each step ends in it.
    """
    tokens = np.searchsorted(spans[:, 0], np.array(step_ends)) - 1
    return np.where((tokens >= 0) & (spans[tokens, 1] >= step_ends), tokens, -1)


def step_ends(start: int, steps: Sequence[str]) -> list[int]:
    """Where each step ends in a text that goes on with them: behind its last character that is no white space.

    Args:
        start: where the first step begins.
        steps: one after the other.
    """
    ends = []
    for step in steps:
        ends.append(start + len(step.rstrip()))
        start += len(step)
    return ends


def end_steps(steps: Sequence[str], end: str, *, finished: bool) -> list[str]:
    """Steps as a model that knows steps reads them: behind each what ends one, unless it is there already.

    Args:
        steps: of a completion; a completion that nobody split is one.
        end: what ends a step.
        finished: False: the last step was cut, and nothing ends it.
    """
    last = len(steps) - 1
    return [
        step if is_ended(step, end) or (number == last and not finished) else step + end
        for number, step in enumerate(steps)
    ]


def is_ended(step: str, end: str) -> bool:
    """Whether a step has at its end what ends one, white space around that aside."""
    bare = end.strip()
    return step.endswith(end) or (bool(bare) and step.rstrip().endswith(bare))


def step_pieces(completion: str, end: str) -> list[str]:
    """A completion as its steps and their ends in turn; what stands behind the last end comes last."""
    first, *others = completion.split(end)
    pieces = [first]
    for step in others:
        pieces += [end, step]
    return pieces


def with_marks(
    messages: Sequence[Mapping[str, JsonValue]], step_ends: Sequence[int] = ()
) -> list[Mapping[str, JsonValue]]:
    """A chat whose contents are marked: where each begins and ends, and each step of the last one.

    No mark stands beside white space at an end of a content, which templates cut off.

    Args:
        messages: the chat.
        step_ends: where each step ends in the last message's content.
    """
    marked: list[Mapping[str, JsonValue]] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            marked.append(message)
            continue
        begin, end = len(content) - len(content.lstrip()), len(content.rstrip())
        marks = [(begin, f"b{number}")]
        if number == len(messages) - 1:
            marks += [(min(max(at, begin), end), f"s{step}") for step, at in enumerate(step_ends)]
        marks.append((end, f"e{number}"))
        parts, last = [], 0
        for at, name in marks:
            parts += [content[last:at], _OPEN, name, _CLOSE]
            last = at
        marked.append({**message, "content": "".join([*parts, content[last:]])})
    return marked


def read_marks(text: str, marked: str, num_steps: int | None = None) -> Marks:
    """What the marks of a rendered chat say of the same chat without them.

    Args:
        text: the chat as the template renders it.
        marked: the chat of `with_marks` as the template renders it.
        num_steps: how many steps there are; None: nobody asks.

    Returns:
        Where messages and steps are. No message is found where the marks change what the template writes around them,
        and steps are not there unless all of them are found.
    """
    found: dict[str, int] = {}
    parts: list[str] = []
    last = length = 0
    for match in _MARK.finditer(marked):
        part = marked[last : match.start()]
        parts.append(part)
        length += len(part)
        found[match[1] + match[2]] = length
        last = match.end()
    if "".join([*parts, marked[last:]]) != text:
        return Marks(messages=())
    contents = [
        (start, found[f"e{name[1:]}"], int(name[1:]))
        for name, start in found.items()
        if name[0] == "b" and f"e{name[1:]}" in found
    ]
    ends = [found.get(f"s{step}") for step in range(num_steps or 0)]
    known = [end for end in ends if end is not None]
    return Marks(contents, known if num_steps is not None and len(known) == num_steps else None)
