"""`plaudit-demo`: the whole loop on two cores, without any download."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from plaudit_client.command_line import Parser, interruptible, run, say, tell
from plaudit_demo.output import prepare_output
from plaudit_demo.processes import ENVIRONMENT
from plaudit_demo.settings import DemoSettings

if TYPE_CHECKING:
    from plaudit_demo.report.results import Results

_DEFAULT_OUTPUT = "runs/demo"

Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None, default: DemoSettings | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the name; None: the process's own.
        default: the sizes of the loop; None: those of `DemoSettings`.

    Returns:
        0: done. 1: it failed. 2: what the user gave is wrong. 130: interrupted by SIGINT or SIGTERM.
    """
    return run("plaudit-demo", lambda: _main(arguments, default or DemoSettings()), extra="demo,export")


def _main(arguments: Sequence[str] | None, default: DemoSettings) -> int:
    parsed = _parser(default).parse_args(arguments)
    return _run(parsed.output, replace(default, seed=parsed.seed, kl_coef=parsed.kl_coef))


def _parser(default: DemoSettings) -> argparse.ArgumentParser:
    parser = Parser(
        prog="plaudit-demo",
        description="Run the whole RLHF loop in minutes on two cores, without any download: warm up a small policy, "
        "sample noisy preferences from a gold reward, train a reward model on them, export it, serve it, and train "
        "the policy with PPO against the service. At the end, the demo shows whether the gold reward rose.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(_DEFAULT_OUTPUT),
        metavar="DIR",
        help="directory for all files of the demo; an earlier demo in it is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--kl-coef",
        type=_at_least_0(float),
        default=default.kl_coef,
        metavar="BETA",
        help="weight of the KL penalty; with 0 the policy over-optimizes: the score rises and the gold reward "
        "falls (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_at_least_0(int),
        default=default.seed,
        metavar="N",
        help="random seed (default: %(default)s)",
    )
    return parser


def _at_least_0(kind: type[Number]) -> Callable[[str], Number]:
    """A converter of arguments to finite numbers that are not negative."""

    def convert(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not 0 <= value < math.inf:
            kind_words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r}; give {kind_words} of at least 0")
        return value

    return convert


def _run(path: Path, settings: DemoSettings) -> int:
    output = prepare_output(path)
    say("loading torch, transformers and TRL")
    os.environ.update(ENVIRONMENT)
    from plaudit_demo.progress import Progress
    from plaudit_demo.run import NUM_STAGES, run_demo

    with interruptible():
        results = run_demo(settings, output, Progress(sys.stderr, NUM_STAGES))
    tell(_report(results, path))
    return 0


def _report(results: "Results", path: Path) -> str:
    before, after = results.before, results.after
    gain = (after.gold_mean - before.gold_mean) / before.gold_std
    return "\n".join(
        [
            f"gold reward   {before.gold_mean:6.2f} -> {after.gold_mean:6.2f}   ({gain:+.2f} std of the start)",
            f"score         {before.score_mean:6.2f} -> {after.score_mean:6.2f}",
            f"KL              0.00 -> {after.kl_mean:6.2f}   nats per completion",
            f"exposed wait  {results.exposed_wait} of the PPO time",
            f"total         {results.seconds:6.0f} s",
            f"page          {path / 'index.html'}",
        ]
    )
