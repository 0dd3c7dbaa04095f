"""`python -m plaudit_demo.steps`: does PPO make fewer wrong steps by a process reward model that TRL trained?"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from plaudit_client.command_line import Parser, interruptible, run
from plaudit_demo.errors import UsageError
from plaudit_demo.processes import ENVIRONMENT

_COLUMNS = {"step_errors": "wrong steps", "solved": "solved", "steps": "steps"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0: done. 1: it failed. 2: what the user gave is wrong. 130: interrupted.
    """
    options = _parser().parse_args(arguments)
    os.environ.update(ENVIRONMENT)
    return run("plaudit_demo.steps", lambda: _run(options), extra="demo,export")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m plaudit_demo.steps",
        description="PPO with a process reward model, on two cores: warm up a policy that counts in steps, with "
        "errors; train a process reward model with TRL on right and wrong steps; export it, serve it, and train the "
        "policy by the reward of each step. Prints the share of wrong steps on held-out tasks before and after PPO. "
        "A seed with results of an earlier call is not run again.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/steps"),
        metavar="DIR",
        help="directory for models and results (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="random seeds (default: 1 2 3)"
    )
    parser.add_argument(
        "--trl-python",
        type=Path,
        default=Path(".venv-trl-ppo/bin/python"),
        metavar="FILE",
        help="interpreter of the environment with trl 1.11, which `make study-prm` makes (default: %(default)s)",
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    if not options.trl_python.is_file():
        raise UsageError(f"--trl-python {options.trl_python}: there is no such file; `make study-prm` makes it")
    print("loading torch and transformers", file=sys.stderr, flush=True)
    import torch
    from transformers.utils import logging

    from plaudit_demo.progress import Progress
    from plaudit_demo.steps.study import NUM_STAGES, StepSettings, read_summary, run_seed

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    output, python = options.output.resolve(), options.trl_python.absolute()
    with interruptible():
        for seed in options.seeds:
            progress = Progress(sys.stderr, NUM_STAGES)
            run_seed(StepSettings(), output / f"seed-{seed}", seed=seed, trl_python=python, progress=progress)
    print(f"| seed | | {' | '.join(_COLUMNS.values())} |")
    print(f"|---|---|{'---|' * len(_COLUMNS)}")
    for seed in options.seeds:
        summary = read_summary(output / f"seed-{seed}")
        for moment in ("before", "after"):
            figures = [f"{summary[moment][name]:.3f}" for name in _COLUMNS]
            print(f"| {seed} | {moment} PPO | {' | '.join(figures)} |")
    return 0
