"""`plaudit-score`: scores a file of items or preference pairs through a scoring service.

Exit 0: done. 1: right but failed. 2: what the user gave is wrong. 130: interrupted by SIGINT or SIGTERM.
"""

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, get_args

from tqdm import tqdm

from plaudit_client import jsonl, settings
from plaudit_client.client import RewardClient
from plaudit_client.command_line import Parser, fail, interruptible, run, say
from plaudit_client.errors import InvalidArgument
from plaudit_client.inputs import STDIN, read_lines
from plaudit_client.jsonl import Line, Summary
from plaudit_client.output import Output, Progress
from plaudit_client.protocol import AlongWhat, Truncation
from plaudit_client.scores import Score, Scores

PROGRAM = "plaudit-score"
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_BATCH_SIZE = 64

_DESCRIPTION = """\
Score a JSONL or parquet file through a scoring service.

Input: each line is an item of POST /score, a JSON string (one text), or a preference pair
{"chosen": "...", "rejected": "..."} of texts or chats. A pair may have its "prompt" in a key of its own. An "id" is
copied to the output. Other keys of a pair and other columns of a parquet file are ignored. Parquet needs pyarrow.

Output: each line is {"line": n, "id": ..., ...} with the result, in the order of the input. An item with completions
gives {"results": [...]}, a pair gives {"chosen": {...}, "rejected": {...}}. For pairs, the accuracy and a histogram of
the scores are printed to stderr. Scores are written to OUTPUT.part, which is renamed to OUTPUT at the end."""

_EPILOG = """\
Each option can also be set by the environment variable in brackets. Without --api-key-file, the API key is
PLAUDIT_API_KEY, or else the first key in PLAUDIT_API_KEYS (a service accepts every key in that list).

exit status: 0 success; 1 failure (service unreachable, item without score); 2 wrong option or input; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status.
    """
    if not sys.warnoptions:  # an error is one line: no library adds another
        warnings.simplefilter("ignore")
    return run(PROGRAM, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    with interruptible():
        return _score_file(_parse_arguments(argv))


def _score_file(options: argparse.Namespace) -> int:
    depends_on = {name: getattr(options, name) for name in ("model", "truncation", "raw", "best_of")}
    # Only where they are asked for, so that a run from before they could be is continued.
    depends_on |= {"along": options.along} if options.along != "none" else {}
    depends_on |= {"explain": True} if options.explain else {}
    client = RewardClient(options.url, api_key=_read_api_key(options.api_key_file), timeout_s=options.timeout_s)
    file_name = "stdin" if options.input == STDIN else options.input
    with client, Output(options.output, depends_on, resume=options.resume) as output:
        lines = jsonl.parse_lines(read_lines(options.input, jsonl.COLUMNS), file_name)
        try:
            summary = _score_lines(client, jsonl.require_groups(lines) if options.best_of else lines, output, options)
        except BaseException:
            if output.can_be_resumed:
                say(f"{PROGRAM}: the scores so far are kept; continue with --resume")
            raise
    if summary.pairs and not options.quiet:
        say("\n".join(summary.histogram.render()))
    if summary.pairs:
        say(f"{PROGRAM}: {summary.describe_pairs()}")
    if summary.failures and not options.allow_failures:
        return fail(
            PROGRAM,
            f"{summary.failures.total()} of {summary.sequences} sequences have no score: "
            f"{jsonl.describe_counts(summary.failures)}; accept this with --allow-failures",
            1,
        )
    return 0


def _score_lines(client: RewardClient, lines: Iterator[Line], output: Output, options: argparse.Namespace) -> Summary:
    """Score lines as they are read and write them in order; those that an interrupted run has written are counted."""
    summary = Summary()
    render = jsonl.render_best if options.best_of else jsonl.render
    with _open_progress(options.quiet) as progress:
        for line, scores in _skip_written(lines, output):
            summary.add(line, scores)
            progress.update(len(scores))
        for chunk, scores in _score_chunks(client, lines, options, pin=output.progress):
            rendered = []
            for line, results in _deal_out(chunk, scores):
                rendered.append(render(line, results))
                summary.add(line, results)
            last = chunk[-1]
            output.write(rendered, Progress(last.number, last.digest, scores.model, scores.fingerprint, scores.engine))
            progress.update(len(scores))
    return summary


def _skip_written(lines: Iterator[Line], output: Output) -> Iterator[tuple[Line, Sequence[Score]]]:
    """The lines that an interrupted run has written, with their scores.

    Raises:
        InvalidArgument: The input is not the one that it has read.
    """
    before = output.progress
    if before is None:
        return
    checked = False
    for answer in output.written_lines():
        line = next(lines, None)
        scores = jsonl.parse_scores(answer)
        if line is None or answer["line"] != line.number or len(scores) != line.num_sequences:
            break
        if line.number == before.line:
            checked = line.digest == before.digest
            if not checked:
                break
        yield line, scores
    else:
        if checked:
            return
    raise InvalidArgument(
        f"--resume: the input differs from the one that the interrupted run read (up to line {before.line}); "
        "give the same input, or delete OUTPUT.part to start over"
    )


def _score_chunks(
    client: RewardClient, lines: Iterable[Line], options: argparse.Namespace, *, pin: Progress | None
) -> Iterator[tuple[list[Line], Scores]]:
    """Score chunks of lines as they are read, in order, with a bounded number of requests in flight."""

    def score(chunk: list[Line]) -> Scores:
        items = [item for line in chunk for item in line.items]
        return client.score(
            items,
            model=options.model,
            truncation=options.truncation,
            raw=options.raw,
            along=options.along,
            explain=options.explain,
            fingerprint=pin.fingerprint if pin else None,
            engine=pin.engine if pin else None,
        )

    in_flight: deque[tuple[list[Line], Future[Scores]]] = deque()
    with ThreadPoolExecutor(settings.DEFAULT_MAX_CONCURRENCY) as pool:
        try:
            for chunk in jsonl.form_chunks(lines, options.batch_size):
                in_flight.append((chunk, pool.submit(score, chunk)))
                while in_flight and (len(in_flight) > settings.DEFAULT_MAX_CONCURRENCY or in_flight[0][1].done()):
                    scored, future = in_flight.popleft()
                    yield scored, future.result()
            while in_flight:
                scored, future = in_flight.popleft()
                yield scored, future.result()
        except BaseException:
            client.close()  # else the pool's end would wait for requests that nobody wants any more
            raise


def _deal_out(chunk: list[Line], scores: Scores) -> Iterator[tuple[Line, Sequence[Score]]]:
    start = 0
    for line in chunk:
        end = start + line.num_sequences
        yield line, scores.results[start:end]
        start = end


@contextlib.contextmanager
def _open_progress(quiet: bool) -> "Iterator[tqdm[NoReturn]]":
    """A bar on a terminal, and above it what happens to the replicas; nothing elsewhere."""
    is_shown = sys.stderr.isatty() and not quiet
    if is_shown:
        logger = logging.getLogger("plaudit_client")
        logger.addHandler(_Notes())
        logger.setLevel(logging.INFO)
    with tqdm(unit=" sequences", disable=not is_shown) as progress:
        yield progress


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"{PROGRAM}: {record.getMessage()}", file=sys.stderr)


def _read_api_key(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{name}: API key cannot be read: {error}") from error
    # The same file may be the service's, which takes every key in it.
    for line in lines:
        if key := line.strip():
            return key
    raise InvalidArgument(f"{name}: contains no API key; write the key into this file")


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=PROGRAM, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag: str, text: str, *, default: object = None, **more: object) -> None:
        variable = "PLAUDIT_" + flag.strip("-").replace("-", "_").upper()
        shown = "" if default is None else f" (default: {default})"
        value = os.environ.get(variable) or (None if default is None else str(default))
        parser.add_argument(flag, default=value, help=f"{text}{shown} [{variable}]", **more)  # type: ignore[arg-type]  # argparse's own keywords

    def add_switch(flag: str, text: str) -> None:
        variable = "PLAUDIT_" + flag.strip("-").replace("-", "_").upper()
        parser.add_argument(
            flag, action="store_true", default=_is_on(variable), help=f"{text} (default: off) [{variable}=1]"
        )

    parser.add_argument(
        "input", metavar="INPUT", nargs="?", default="-", help="JSONL (also .gz) or .parquet file; - is stdin (default)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUTPUT",
        default="-",
        help="output file, written as OUTPUT.part and renamed at the end; - is stdout (default)",
    )
    add("--url", "base URL of the service, or of its replicas, separated by commas", metavar="URL[,URL...]")
    add("--api-key-file", "file with one API key per line; the first key is sent", metavar="FILE")
    add("--model", "name of the model; needed only if the service has several", metavar="NAME")
    add(
        "--truncation",
        "a text longer than the model's limit: error = no score (status too_long), left = keep its end, "
        "right = keep its beginning",
        default="error",
        type=_one_of(get_args(Truncation)),
        metavar="|".join(get_args(Truncation)),
    )
    add(
        "--along",
        "also write scores along the text: steps = at the end of each step, tokens = at each token",
        default="none",
        type=_one_of(get_args(AlongWhat)),
        metavar="|".join(get_args(AlongWhat)),
    )
    add(
        "--timeout-s",
        "time limit of one request, retries included, in seconds",
        default=f"{DEFAULT_TIMEOUT_S:g}",
        type=_seconds,
        metavar="S",
    )
    add("--batch-size", "sequences per request", default=DEFAULT_BATCH_SIZE, type=_count, metavar="N")
    add_switch("--resume", "continue an interrupted run from OUTPUT.part; nothing is scored twice")
    add_switch("--best-of", "for an item with completions, also write the completion with the highest score")
    add_switch("--explain", "also write the text that was scored, after the model's chat template")
    add_switch("--raw", "write raw scores, without the model's normalization")
    add_switch("--allow-failures", "exit with 0 even if some sequences have no score")
    add_switch("--quiet", "show no progress bar; without a terminal on stderr none is shown anyway")
    return parser.parse_args(argv)


def _is_on(variable: str) -> bool:
    value = os.environ.get(variable, "").lower()
    if value not in {"", "0", "false", "1", "true"}:
        raise InvalidArgument(f"{variable}: got {value!r}; give 1 or 0")
    return value in {"1", "true"}


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in choices:
            raise argparse.ArgumentTypeError(f"got {value!r}; give one of {', '.join(choices)}")
        return value

    return check


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
        settings.check_positive("seconds", seconds)
    except ValueError as error:  # InvalidArgument is one too
        raise argparse.ArgumentTypeError(f"got {value!r}; give a number of seconds above 0") from error
    return seconds


def _count(value: str) -> int:
    if not (value.isdecimal() and int(value) > 0):
        raise argparse.ArgumentTypeError(f"got {value!r}; give a whole number above 0")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
