"""Where prompts are: files of JSONL or parquet, directories of them, data sets of the hub. Rows as they stand there.

Knows nothing of what a row has to hold. No code of a data set is run.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plaudit_client import InvalidArgument
from plaudit_client.inputs import read_lines
from plaudit_ppo.errors import PromptError, one_line

EXPECTED = (
    'each line is {"prompt": "..."}, or {"messages": [{"role": "...", "content": "..."}]} with the messages under '
    "prompt or messages"
)
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
        PromptError: the source is missing or cannot be read; the message names it.
    """
    path, _, split = source.partition("#")
    if Path(source).is_file():
        yield from _of_file(source)
    elif Path(path).is_dir():
        yield from _of_directory(Path(path), split or None)
    elif (match := _HUB.fullmatch(source)) and not path.endswith(_SUFFIXES):
        yield from _of_hub(source, match)
    else:
        raise PromptError(f"{source}: cannot be read (No such file or directory); {_SOURCES}; {EXPECTED}")


def pinned(source: str) -> str:
    """A source with the commit that the hub has now, where it is a data set of the hub; else as it is.

    Raises:
        PromptError: the hub does not have it.
    """
    path, sign, split = source.partition("#")
    match = _HUB.fullmatch(source)
    if match is None or Path(source).exists() or Path(path).exists() or path.endswith(_SUFFIXES):
        return source
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return source  # its cache has one, or none
    try:
        commit = HfApi().dataset_info(match["repo"], revision=match["revision"]).sha
    except Exception as error:  # the hub's client raises classes of its own and of its HTTP library
        raise _not_to_be_had(source, error) from error
    return f"{match['repo']}@{commit}{sign}{split}"


def _of_file(name: str) -> Iterator[Row]:
    is_table = name.endswith(".parquet")
    try:
        for number, line in enumerate(read_lines(name), start=1):
            if line.strip():
                where = f"{name} {'row' if is_table else 'line'} {number}"
                yield where, _parsed(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)
    except InvalidArgument as error:
        raise PromptError(f"{error}; {EXPECTED}") from error


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON ({error}); {EXPECTED}") from error


def _of_directory(directory: Path, split: str | None) -> Iterator[Row]:
    if any((directory / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        yield from _of_saved(directory, split)
        return
    files = sorted(path for path in directory.rglob("*") if path.name.endswith(_SUFFIXES) and path.is_file())
    splits = {name: [file for file in files if _is_of(name, file.relative_to(directory))] for name in _SPLITS}
    named = [name for name, of_split in splits.items() if of_split]
    if split is None and len(named) > 1:
        raise PromptError(f"{directory}: holds the splits {', '.join(named)}; name one: {directory}#{named[0]}")
    if split is not None:
        files = [file for file in files if _is_of(split, file.relative_to(directory))]
    if not files:
        what = "no files" if split is None else f"no files of the split {split}"
        raise PromptError(f"{directory}: holds {what} ({', '.join(_SUFFIXES)}); {_SOURCES}")
    for file in files:
        yield from _of_file(str(file))


def _is_of(split: str, file: Path) -> bool:
    """Whether a file's name, or a folder that it is in, says the split as a word."""
    return re.search(rf"(^|[/._-]){re.escape(split)}([/._-]|$)", file.as_posix()) is not None


def _of_saved(directory: Path, split: str | None) -> Iterator[Row]:
    """What `save_to_disk` of the package datasets has written."""
    from datasets import load_from_disk

    try:
        saved = load_from_disk(str(directory))
        if isinstance(saved, dict):
            if split is None and len(saved) > 1:
                raise PromptError(f"{directory}: holds the splits {', '.join(saved)}; name one: {directory}#train")
            saved = saved[split or next(iter(saved))]
    except KeyError as error:
        raise PromptError(f"{directory}: holds no split {split}; it has {', '.join(saved)}") from error
    except PromptError:
        raise
    except Exception as error:  # datasets and pyarrow have exception types of their own
        raise PromptError(f"{directory}: cannot be read ({one_line(error)}); {_SOURCES}") from error
    yield from _of_dataset(saved, str(directory))


def _of_hub(source: str, match: "re.Match[str]") -> Iterator[Row]:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        dataset = load_dataset(
            match["repo"], match["subset"], split=match["split"] or "train", revision=match["revision"]
        )
    except Exception as error:  # as in pinned
        raise _not_to_be_had(source, error) from error
    yield from _of_dataset(dataset, source)


def _of_dataset(dataset: Any, where: str) -> Iterator[Row]:
    for number, row in enumerate(dataset, start=1):
        yield f"{where} row {number}", _plain(row)


def _plain(row: Mapping[str, Any]) -> Any:
    """A row of a table as JSON has it: null counts as not there, what JSON has no form for becomes a text."""
    given = {name: value for name, value in row.items() if value is not None}
    return json.loads(json.dumps(given, default=str))


def _not_to_be_had(source: str, error: Exception) -> PromptError:
    return PromptError(
        f"{source}: no such file or directory, and it cannot be had from the hub ({one_line(error)}); {_SOURCES}"
    )
