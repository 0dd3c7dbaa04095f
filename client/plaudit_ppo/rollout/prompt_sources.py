"""Where prompts are: files of JSONL or parquet, directories of them, data sets of the hub. Rows as they stand there.

Knows nothing of what a row has to hold. No code of a data set is run.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from plaudit_client import InvalidArgument
from plaudit_client.inputs import read_lines
from plaudit_ppo.errors import PromptError, one_line

EXPECTED = (
    'each line is {"prompt": "..."}, or a chat {"messages": [{"role": "...", "content": "..."}]}; '
    "a chat may also stand under prompt"
)
MAX_ROWS = 5_000_000

_SOURCES = "a source of prompts is PATH[#SPLIT] or a data set of the hub, org/name[@revision][#[SUBSET/]SPLIT]"
_HUB = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?(#((?P<subset>[\w.-]+)/)?(?P<split>\w[\w.+%:\[\]-]*))?"
)
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".parquet")
# Splits that a directory may hold beside each other, and that nobody wants to train on by accident.
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")

Row = tuple[str, Any]


def read_rows(source: str) -> Iterator[Row]:
    """Each row of a source, and where it stands, for messages.

    Raises:
        PromptError: the source is missing, cannot be read, or has more than MAX_ROWS rows; the message names it.
    """
    rows = _rows(source)
    yield from islice(rows, MAX_ROWS)
    if next(rows, None) is not None:
        raise PromptError(
            f"{source}: more than {MAX_ROWS} rows, and the prompts of a run are kept in memory; give a part of "
            f"it, such as #train[:{MAX_ROWS}]"
        )


def _rows(source: str) -> Iterator[Row]:
    path, _, split = source.partition("#")
    if Path(source).is_file():
        yield from _of_file(source)
    elif Path(path).is_dir():
        yield from _of_directory(Path(path), split or None)
    elif (match := _HUB.fullmatch(source)) and not path.endswith(_SUFFIXES):
        yield from _of_hub(source, match)
    else:
        raise PromptError(f"{source}: cannot be read (No such file or directory); {_SOURCES}; {EXPECTED}")


def _of_file(name: str) -> Iterator[Row]:
    is_table = name.endswith(".parquet")
    try:
        for number, line in enumerate(read_lines(name), start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                where = f"{name} {'row' if is_table else 'line'} {number}"
                yield where, _parsed(text, where)
    except InvalidArgument as error:
        raise PromptError(f"{error}; {EXPECTED}") from error


def _parsed(line: bytes, where: str) -> Any:
    try:
        return _plain(line.decode())
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error.msg}, column {error.colno}); {EXPECTED}") from error
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a number of too many digits
        raise PromptError(f"{where}: not JSON ({error}); {EXPECTED}") from error


def _plain(text: str) -> Any:
    """What a JSON text says; NaN and the infinities, which are no JSON, count as null."""
    return json.loads(text, parse_constant=lambda _: None)


def _of_directory(directory: Path, split: str | None) -> Iterator[Row]:
    if any((directory / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        yield from _of_saved(directory, split)
        return
    files = sorted(path for path in directory.rglob("*") if path.name.endswith(_SUFFIXES) and path.is_file())
    if split is None:
        named = [name for name in _SPLITS if any(_is_of(name, file.relative_to(directory)) for file in files)]
        if len(named) > 1:
            raise PromptError(_choose(directory, named))
    else:
        files = [file for file in files if _is_of(split, file.relative_to(directory))]
    if not files:
        what = "no files" if split is None else f"no files of the split {split}"
        raise PromptError(f"{directory}: holds {what} ({', '.join(_SUFFIXES)}); {_SOURCES}")
    for file in files:
        yield from _of_file(str(file))


def _choose(directory: Path, splits: list[str]) -> str:
    return f"{directory}: holds the splits {', '.join(splits)}; name one: {directory}#{splits[0]}"


def _is_of(split: str, file: Path) -> bool:
    """Whether a file's name, or a folder that it is in, says the split as a word."""
    return re.search(rf"(^|[/._-]){re.escape(split)}([/._-]|$)", file.as_posix()) is not None


def _of_saved(directory: Path, split: str | None) -> Iterator[Row]:
    """What `save_to_disk` of the package datasets has written."""
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(directory))
    except Exception as error:  # datasets and pyarrow have exception types of their own
        raise PromptError(f"{directory}: cannot be read ({one_line(error)}); {_SOURCES}") from error
    splits = saved if isinstance(saved, dict) else {split or "train": saved}
    if split is None and len(splits) > 1:
        raise PromptError(_choose(directory, list(splits)))
    chosen = split or next(iter(splits))
    if chosen not in splits:
        raise PromptError(f"{directory}: holds no split {split}; it has {', '.join(splits)}")
    yield from _of_dataset(splits[chosen], str(directory))


def _of_hub(source: str, match: "re.Match[str]") -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        dataset = load_dataset(
            match["repo"], match["subset"], split=match["split"] or "train", revision=match["revision"]
        )
    except Exception as error:  # the hub's client raises classes of its own and of its HTTP library
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise PromptError(
            f"{source}: no such file or directory, and it cannot be downloaded from the hub ({one_line(cause)}); "
            f"{_SOURCES}"
        ) from error
    yield from _of_dataset(dataset, source)


def _of_dataset(dataset: Any, where: str) -> Iterator[Row]:
    for number, row in enumerate(dataset, start=1):
        yield f"{where} row {number}", _of_table(row)


def _of_table(row: Mapping[str, Any]) -> Any:
    """A row of a table as JSON has it: null counts as not there, what JSON has no form for becomes a text."""
    return _plain(json.dumps({name: value for name, value in row.items() if value is not None}, default=str))
