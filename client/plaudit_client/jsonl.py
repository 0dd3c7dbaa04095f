"""The lines that `plaudit-score` reads and writes: one item, or one preference pair, per line.

Knows nothing of the network and of arguments.
"""

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from plaudit_client.errors import InvalidArgument
from plaudit_client.histogram import Histogram
from plaudit_client.items import WIRE_FIELDS, normalize_item, normalize_messages, num_sequences
from plaudit_client.scores import Along, Score, best_of

_MAX_CHUNK_BYTES = 4 * 1024 * 1024
# Two answers may begin with a shorter prompt by chance.
_MIN_REPEATED_CHARS = 20
# Names that data sets give to a prompt.
_PROMPTS = ("question", "instruction", "query")
# Keys of a data set that change what a trainer's chat template writes, or what its model sees.
_NOT_RENDERED = frozenset({"tools", "chat_template_kwargs", "image", "images"})
# What a row of a table can say; the rest of its columns are about it.
COLUMNS = frozenset({"id", "chosen", "rejected"}) | WIRE_FIELDS | _NOT_RENDERED | set(_PROMPTS)


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        where: File and line number, for messages.
        number: Of the line in the file, from 1.
        digest: SHA-256 of the file up to the end of this line.
        copied: What the output line begins with: `line`, and `id` where the input has one.
        items: What is to be scored.
        num_bytes: Its length.
        is_pair: Whether the sequences are the chosen and the rejected text of a preference pair.
    """

    where: str
    number: int
    digest: str
    copied: dict[str, Any]
    items: list[dict[str, Any]]
    num_bytes: int
    is_pair: bool = False

    @property
    def num_sequences(self) -> int:
        """How many scores belong to this line."""
        return sum(num_sequences(item) for item in self.items)


@dataclass
class Summary:
    """What is counted over all lines."""

    sequences: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    pair_failures: Counter[str] = field(default_factory=Counter)
    pairs_right: int = 0
    histogram: Histogram = field(default_factory=lambda: Histogram(("chosen", "rejected")))

    def add(self, line: Line, scores: Sequence[Score]) -> None:
        """Count one line and its scores."""
        self.sequences += len(scores)
        self.failures.update(score.status for score in scores if not score.ok)
        if not line.is_pair:
            return
        self.pairs += 1
        chosen, rejected = (score.score for score in scores)
        for series, value in enumerate((chosen, rejected)):
            if value is not None:
                self.histogram.add(series, value)
        if chosen is None or rejected is None:
            # A pair counts once: by the chosen text's status where both failed.
            self.pair_failures[next(score.status for score in scores if not score.ok)] += 1
        else:
            self.pairs_right += chosen > rejected

    def describe_pairs(self) -> str:
        """One line on the pairs. Accuracy: the share of scored pairs whose chosen text scores higher; a tie is not."""
        scored = self.pairs - self.pair_failures.total()
        accuracy = f"{self.pairs_right / scored:.4f}" if scored else "none"
        left_out = f", left out: {describe_counts(self.pair_failures)}" if self.pair_failures else ""
        return f"pairs: {self.pairs}, scored: {scored}{left_out}, pair accuracy: {accuracy}"


def describe_counts(counts: Counter[str]) -> str:
    """Counts by status, the most frequent first: `too_long 3, empty 1`."""
    return ", ".join(f"{status} {count}" for status, count in counts.most_common())


def parse_lines(lines: Iterable[bytes], file_name: str) -> Iterator[Line]:
    """Parse lines as they come; blank ones are left out, but counted.

    Raises:
        InvalidArgument: A line is no JSON, or no item and no pair; the message begins with file and line number.
    """
    digest = hashlib.sha256()
    for number, line in enumerate(lines, start=1):
        digest.update(line)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901  # as editors on Windows write it
        if not line.isspace():
            copied, items, is_pair = _parse_line(line, f"{file_name}:{number}", number)
            yield Line(f"{file_name}:{number}", number, digest.hexdigest(), copied, items, len(line), is_pair)


def require_groups(lines: Iterable[Line]) -> Iterator[Line]:
    """Let only items with completions pass.

    Raises:
        InvalidArgument: A line is something else.
    """
    for line in lines:
        if line.is_pair or "completions" not in line.items[0]:
            _refuse(line.where, "no completions to choose from; give prompt or messages, and a list of completions")
        yield line


def form_chunks(lines: Iterable[Line], max_sequences: int) -> Iterator[list[Line]]:
    """Group lines so that each group has at most `max_sequences` sequences (one line alone may have more).

    A group also ends when its lines are long, so that the memory for those in flight stays bounded.
    """
    chunk: list[Line] = []
    sequences = size = 0
    for line in lines:
        if chunk and (sequences + line.num_sequences > max_sequences or size + line.num_bytes > _MAX_CHUNK_BYTES):
            yield chunk
            chunk, sequences, size = [], 0, 0
        chunk.append(line)
        sequences += line.num_sequences
        size += line.num_bytes
    if chunk:
        yield chunk


def render(line: Line, scores: Sequence[Score]) -> str:
    """The output line, with its newline."""
    results = [_to_json(score) for score in scores]
    answer: dict[str, Any]
    if line.is_pair:
        answer = dict(zip(("chosen", "rejected"), results, strict=True))
    elif "completions" in line.items[0]:
        answer = {"results": results}
    else:
        (answer,) = results
    return json.dumps(line.copied | answer) + "\n"


def render_best(line: Line, scores: Sequence[Score]) -> str:
    """The output line of a group with its best completion, beside the results of all."""
    (item,) = line.items
    (best,) = best_of([item], scores)
    kept = {key: value for key, value in item.items() if key != "completions"}
    chosen = {"completion": None, "index": None, "score": None} if best is None else asdict(best)
    return json.dumps(line.copied | kept | chosen | {"results": [_to_json(score) for score in scores]}) + "\n"


def parse_scores(answer: Mapping[str, Any]) -> list[Score]:
    """The scores of an output line that was written before."""
    if "results" in answer:
        results = answer["results"]
    elif "chosen" in answer:
        results = [answer["chosen"], answer["rejected"]]
    else:
        results = [{key: value for key, value in answer.items() if key not in {"line", "id"}}]
    return [_from_json(result) for result in results]


def _parse_line(line: bytes, where: str, number: int) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
    """What to copy, the items, and whether they are a pair."""
    try:
        value = json.loads(line, parse_constant=lambda name: _refuse(where, f"not JSON: {name}"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"{where}: not JSON: {error}; give one JSON value per line") from error
    copied: dict[str, Any] = {"line": number}
    if not isinstance(value, dict):
        return copied, [normalize_item(value, where)], False
    if "id" in value:
        copied["id"] = value.pop("id")
    for name in sorted(value.keys() & _NOT_RENDERED):
        if value.pop(name):
            _refuse(
                where, f"has {name}, which the service does not support, so a different text would be scored; remove it"
            )
    if "chosen" in value or "rejected" in value:
        return copied, _parse_pair(value, where), True
    if isinstance(value.get("prompt"), list) and "completion" in value:
        kept = {key: value[key] for key in ("finished",) if key in value}
        value = _completed(value["prompt"], value["completion"], f"{where}.completion", where) | kept
    if unknown := value.keys() - WIRE_FIELDS:
        _refuse(
            where,
            f"has unknown keys {', '.join(sorted(unknown))}; remove them: only the keys of an item and id are allowed",
        )
    return copied, [normalize_item(value, where)], False


def _parse_pair(value: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The items of a pair in TRL's preference formats: texts or chats, with the prompt apart or inside of both.

    Other keys are what a data set says about the pair.
    """
    if not {"chosen", "rejected"} <= value.keys():
        _refuse(where, f"has the keys {', '.join(sorted(value))}; a preference pair needs both chosen and rejected")
    answers = {name: value[name] for name in ("chosen", "rejected")}
    if {type(answer) for answer in answers.values()} not in ({str}, {list}):
        _refuse(
            where, "chosen and rejected are not both texts or both chats; give two strings or two lists of messages"
        )
    prompt = value.get("prompt")
    _check_prompt(value, where)
    return [_completed(prompt, answer, f"{where}.{name}", where) for name, answer in answers.items()]


def _check_prompt(pair: Mapping[str, Any], where: str) -> None:
    """The texts of a pair get their prompt once; chats hold it."""
    prompt, chosen, rejected = (pair.get(name) for name in ("prompt", "chosen", "rejected"))
    if isinstance(prompt, str) and _repeats(prompt, chosen) and _repeats(prompt, rejected):
        # One alone may say it again.
        _refuse(
            f"{where}.chosen",
            "begins with the prompt, and so does rejected, so the prompt would be scored twice; leave prompt "
            "out, or remove it from chosen and rejected",
        )
    for name in _PROMPTS if prompt is None else ():
        asked = pair.get(name)
        if isinstance(asked, str) and isinstance(chosen, str) and asked.strip() not in chosen:
            _refuse(
                where,
                f"has {name}, but chosen does not contain it, so the completions would be scored without their "
                f"prompt; rename {name} to prompt",
            )


def _repeats(prompt: str, answer: object) -> bool:
    """Whether a text begins with its prompt, and not as an answer may, with one letter or the same greeting."""
    return isinstance(answer, str) and len(prompt) >= _MIN_REPEATED_CHARS and answer.startswith(prompt)


def _completed(prompt: object, answer: object, place: str, where: str) -> dict[str, Any]:
    """The item of a prompt and what follows it, each a text or a chat, and the prompt perhaps inside of what follows.

    Args:
        prompt: None: it is inside.
        answer: A text, or messages.
        place: Of the answer, for messages of an error.
        where: Of the line.

    Raises:
        InvalidArgument: They do not fit together.
    """
    if prompt is None and isinstance(answer, str):
        return {"text": answer}
    if isinstance(prompt, str) and isinstance(answer, str):
        return {"prompt": prompt, "completion": answer}
    if isinstance(answer, str):
        return {"messages": normalize_messages(prompt, f"{where}.prompt"), "completions": [answer]}
    chat = normalize_messages(answer, place)
    if prompt is None:
        return {"messages": chat}
    if isinstance(prompt, str):
        # Data sets with whole chats keep the question apart as well, for people to read.
        if not any(message.get("content") == prompt for message in chat):
            _refuse(
                place,
                "is a chat that does not contain the prompt, and the prompt is a text; give the prompt as a list of "
                "messages",
            )
        return {"messages": chat}
    before = normalize_messages(prompt, f"{where}.prompt")
    if chat[: len(before)] == before:
        _refuse(
            place, "begins with the prompt, so the prompt would be scored twice; leave prompt out, or remove it here"
        )
    return {"messages": before + chat}


def _to_json(score: Score) -> dict[str, Any]:
    wire: dict[str, Any] = {
        "status": score.status,
        "score": score.score,
        "num_tokens": score.num_tokens,
        "truncated": score.truncated,
    }
    optional = {
        "detail": score.detail,
        "heads": score.heads,
        "along": None if score.along is None else _without_nones(asdict(score.along)),
        "text": score.text,
    }
    return wire | {key: value for key, value in optional.items() if value is not None}


def _without_nones(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: column for name, column in columns.items() if column is not None}


def _from_json(wire: Mapping[str, Any]) -> Score:
    score = Score(**wire)
    along: Any = score.along
    if along is None:
        return score
    columns: dict[str, Any] = {
        name: tuple(column) if isinstance(column, list) else column for name, column in along.items()
    }
    return replace(score, along=Along(**columns))


def _refuse(where: str, what: str) -> NoReturn:
    raise InvalidArgument(f"{where}: {what}")
