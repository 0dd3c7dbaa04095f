"""The user's texts and preference pairs: items of POST /score or rows of TRL's data sets, as JSONL or parquet.

Knows nothing of models and of how texts are scored.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit_export.errors import SourceError
from plaudit_service.errors import InvalidRequest
from plaudit_service.items import ChatItem, Message, check_request

Item = dict[str, Any]

# What a row of a table can say; the rest of its columns are about it.
_COLUMNS = (
    "text",
    "prompt",
    "completion",
    "completions",
    "messages",
    "token_ids",
    "finished",
    "chosen",
    "rejected",
)
# Columns that change what a trainer's chat template writes, or what its model sees.
_NOT_RENDERED = ("tools", "chat_template_kwargs", "image", "images")
# What other data sets call the prompt.
_PROMPTS = ("question", "instruction", "query")
# Two answers may begin with a shorter prompt by chance.
_MIN_REPEATED_CHARS = 20
_EXPECTED = "give items of POST /score, or rows with chosen and rejected"


@dataclass(frozen=True)
class Pair:
    """A preference pair: two items of one sequence each."""

    chosen: Item
    rejected: Item


def read_items(option: str, path: Path) -> list[Item]:
    """The user's texts, one sequence each: a group of completions becomes several items, a preference pair two.

    Args:
        option: that the file was given for.
        path: of the file; `.parquet` is read with pyarrow, anything else as JSONL.

    Raises:
        SourceError: says which line, and why.
    """
    items = []
    for where, row in _read_rows(option, path):
        if _is_pair(row):
            pair = _as_pair(where, row)
            items += [pair.chosen, pair.rejected]
        else:
            items += _as_items(where, row)
    if not items:
        raise SourceError(f"{option} {path}: holds no items; {_EXPECTED}")
    return items


def read_pairs(option: str, path: Path) -> list[Pair]:
    """The user's preference pairs, in any of TRL's forms: texts or chats, the prompt apart or inside of both.

    Args:
        option: that the file was given for.
        path: of the file; `.parquet` is read with pyarrow, anything else as JSONL.

    Raises:
        SourceError: says which line, and why.
    """
    pairs = []
    for where, row in _read_rows(option, path):
        if not _is_pair(row):
            raise SourceError(f"{where}: is not a preference pair; give rows with chosen and rejected")
        pairs.append(_as_pair(where, row))
    if not pairs:
        raise SourceError(f"{option} {path}: holds no pairs; give rows with chosen and rejected")
    return pairs


def _read_rows(option: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Each row, and where it stands, for messages."""
    is_table = path.suffix == ".parquet"
    try:
        for number, row in enumerate(_read_table(path) if is_table else _read_lines(path), start=1):
            if row is not None:
                where = f"{option} {path} {'row' if is_table else 'line'} {number}"
                _refuse_what_is_not_rendered(where, row)
                yield where, row
    except ModuleNotFoundError as error:
        raise SourceError(f"{option} {path}: parquet needs pyarrow: pip install pyarrow; or give JSONL") from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise SourceError(f"{option} {path}: cannot be read ({error})") from error


def _read_table(path: Path) -> Iterator[Any]:
    """The rows of a parquet file, without other columns; a column that is null counts as not there."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        known = [name for name in file.schema_arrow.names if name in _COLUMNS + _NOT_RENDERED + _PROMPTS]
        for batch in file.iter_batches(columns=known):
            for row in batch.to_pylist():
                yield {name: value for name, value in row.items() if value or (name in _COLUMNS and value is not None)}


def _read_lines(path: Path) -> Iterator[Any]:
    """The JSON values of a file's lines; None for a blank one."""
    text = path.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):  # JSON keeps other line ends in its strings
        try:
            yield json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}; give one JSON value per line") from error


def _is_pair(row: Any) -> bool:
    return isinstance(row, Mapping) and ("chosen" in row or "rejected" in row)


def _as_pair(where: str, row: Mapping[str, Any]) -> Pair:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if {type(chosen), type(rejected)} not in ({str}, {list}):
        raise SourceError(
            f"{where}: chosen and rejected are not both texts or both chats; give two strings or two lists of messages"
        )
    _check_prompt(where, row)
    return Pair(
        chosen=_completed(f"{where}: chosen", row.get("prompt"), chosen),
        rejected=_completed(f"{where}: rejected", row.get("prompt"), rejected),
    )


def _check_prompt(where: str, row: Mapping[str, Any]) -> None:
    """The texts of a pair get their prompt once.

    Raises:
        SourceError: it is in another column alone, or in both texts and in `prompt`.
    """
    prompt, answers = row.get("prompt"), (row["chosen"], row["rejected"])
    if not all(isinstance(answer, str) for answer in answers):
        return
    if (
        isinstance(prompt, str)
        and len(prompt) >= _MIN_REPEATED_CHARS
        and all(answer.startswith(prompt) for answer in answers)
    ):
        raise SourceError(
            f"{where}: chosen and rejected begin with the prompt, so the prompt would be scored twice; leave "
            "prompt out, or remove it there"
        )
    for name in _PROMPTS if prompt is None else ():
        asked = row.get(name)
        if isinstance(asked, str) and asked.strip() not in answers[0]:
            raise SourceError(
                f"{where}: has {name}, but chosen does not contain it, so the completions would be scored without "
                f"their prompt; rename {name} to prompt"
            )


def _as_items(where: str, row: Any) -> list[Item]:
    """An item of the wire, or a row of TRL's conversational prompts with completions."""
    if isinstance(row, Mapping) and isinstance(row.get("prompt"), list) and "completion" in row:
        item = _completed(f"{where}: completion", row["prompt"], row["completion"])
        return [item | {name: row[name] for name in ("finished",) if name in row}]
    return _one_by_one(_checked(where, row))


def _completed(where: str, prompt: Any, answer: Any) -> Item:
    """The item of a prompt and what follows it: each a text or a chat, and the prompt perhaps inside of what follows.

    Args:
        where: the answer stands, for messages.
        prompt: None: it is inside.
        answer: a text, or messages.
    """
    if prompt is None:
        return _checked(where, {"text": answer} if isinstance(answer, str) else {"messages": answer})
    if isinstance(prompt, str) and isinstance(answer, str):
        return _checked(where, {"prompt": prompt, "completion": answer})
    if isinstance(prompt, str):
        chat = _checked(where, {"messages": answer})
        # Data sets with whole chats keep the question apart as well, for people to read.
        if not any(message.get("content") == prompt for message in chat["messages"]):
            raise SourceError(
                f"{where} is a chat that does not contain the prompt, and the prompt is a text; give the prompt as a "
                "list of messages"
            )
        return chat
    before = _checked(f"{where}'s prompt", {"messages": prompt})["messages"]
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    after = _checked(where, {"messages": turns})["messages"]
    if after[: len(before)] == before:
        raise SourceError(
            f"{where} begins with the prompt, so the prompt would be scored twice; leave prompt out, or remove it here"
        )
    return {"messages": before + after}


def _refuse_what_is_not_rendered(where: str, row: Any) -> None:
    for name in _NOT_RENDERED:
        if isinstance(row, Mapping) and row.get(name):
            raise SourceError(
                f"{where}: has {name}, which POST /score does not support, so a different text would be scored; "
                "remove the row or the column"
            )


def _checked(where: str, row: Any) -> Item:
    """An item of the wire; its messages as a chat template gets them, in the file's order of keys.

    Raises:
        SourceError: it is none.
    """
    try:
        (item,) = check_request({"items": [row]}).items
    except InvalidRequest as error:
        reason = str(error).removeprefix("items[0]").lstrip(".: ")
        raise SourceError(f"{where}: {reason}; {_EXPECTED}") from error
    if not isinstance(item, ChatItem):
        return dict(row)
    return {**row, "messages": [_as_read(*pair) for pair in zip(row["messages"], item.messages, strict=True)]}


def _as_read(given: Mapping[str, Any], message: Message) -> dict[str, Any]:
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
