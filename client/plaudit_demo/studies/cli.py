"""`python -m plaudit_demo.studies`: PPO against best-of-n and TRL's, without its KL penalty, and by an engine."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

from plaudit_client.command_line import Parser, interruptible, run
from plaudit_demo.errors import UsageError
from plaudit_demo.processes import ENVIRONMENT
from plaudit_demo.settings import DemoSettings

_NAMES = ("best-of-n", "beta", "trl", "draws", "engine")
_MIN_ENGINE_WIDTH = 128  # 4 heads of 32, the least that vLLM has attention for on the CPU


def main(arguments: Sequence[str] | None = None, sizes: DemoSettings | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the name; None: the process's own.
        sizes: of models, ground and PPO; None: the demo's.

    Returns:
        0: done. 1: it failed. 2: what the user gave is wrong. 130: interrupted.
    """
    options = _parser().parse_args(arguments)
    os.environ.update(ENVIRONMENT)
    return run(
        "plaudit_demo.studies",
        lambda: _run(options, sizes or DemoSettings()),
        extra="demo,export",
        interrupted="interrupted; the same command goes on after the runs that are done",
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m plaudit_demo.studies",
        description="Studies of PPO with the models and texts of the demo. A study trains the models that it needs, "
        "keeps them, and prints one table. Models of an earlier call, or of another study, are not trained "
        "again. The output directory gets NAME.jsonl and NAME.html.",
    )
    parser.add_argument(
        "study",
        choices=_NAMES,
        help="PPO compared with: best-of-n; PPO with beta 0; PPO of TRL 1.11; itself with other random draws; "
        "rollouts by vLLM in bfloat16, in turn and one step ahead",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/studies"),
        metavar="DIR",
        help="directory for models and results (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=_natural,
        nargs="+",
        default=[1, 2, 3],
        metavar="N",
        help="random seeds; each one gets its own SFT policy, preferences and RM (default: 1 2 3)",
    )
    parser.add_argument(
        "--ground",
        type=_natural,
        metavar="N",
        help="all seeds share the SFT policy, preferences and RM of seed N, so that the spread is that of PPO alone",
    )
    parser.add_argument(
        "--iterations", type=_natural, default=40, metavar="N", help="iterations of each PPO run (default: %(default)s)"
    )
    parser.add_argument(
        "--evaluate-every",
        type=_natural,
        default=2,
        metavar="N",
        help="iterations between two evaluations (default: %(default)s)",
    )
    parser.add_argument(
        "--trl-python",
        type=Path,
        default=Path(".venv-trl-ppo/bin/python"),
        metavar="FILE",
        help="interpreter of the environment with trl 1.11, which `make study-trl` makes (default: %(default)s)",
    )
    parser.add_argument(
        "--vllm-python",
        type=Path,
        default=Path(".venv-vllm/bin/python"),
        metavar="FILE",
        help="interpreter of the environment with vLLM, which `make study-engine` makes (default: %(default)s)",
    )
    return parser


def _natural(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}; give a whole number above 0")
    return int(text)


def _run(options: argparse.Namespace, sizes: DemoSettings) -> int:
    print("loading torch, transformers and TRL", file=sys.stderr, flush=True)
    from transformers.utils import logging

    from plaudit_demo.progress import Progress
    from plaudit_demo.studies import studies
    from plaudit_demo.studies.engine import serving_policy
    from plaudit_demo.studies.ground import ensure_ground
    from plaudit_demo.studies.sampling import ensure_samples
    from plaudit_demo.studies.settings import (
        BY_ENGINE,
        BY_ENGINE_AHEAD,
        BY_ENGINE_AHEAD_WIDE,
        DEFAULT,
        LIKE_TRL,
        PPO_BY_KL,
        TRL,
        TRL_SAME_DRAWS,
        WITHOUT_KL,
        StudySettings,
    )
    from plaudit_demo.studies.training import ensure_runs

    report, runs = {
        "best-of-n": (studies.study_best_of_n, [[each] for each in PPO_BY_KL]),
        "beta": (studies.study_beta, [[DEFAULT], [WITHOUT_KL]]),
        "trl": (studies.study_trl, [[LIKE_TRL, TRL]]),
        "draws": (studies.study_draws, [[LIKE_TRL], [TRL_SAME_DRAWS], [TRL]]),
        "engine": (studies.study_engine, [[DEFAULT], [BY_ENGINE], [BY_ENGINE_AHEAD], [BY_ENGINE_AHEAD_WIDE]]),
    }[options.study]
    if options.study == "engine":
        sizes = replace(sizes, policy_hidden_size=max(sizes.policy_hidden_size, _MIN_ENGINE_WIDTH))
    settings = StudySettings(
        sizes=sizes,
        output=options.output.resolve(),
        seeds=tuple(options.seeds),
        iterations=options.iterations,
        evaluate_every=options.evaluate_every,
        ground_seed=options.ground,
    )
    if options.study in ("trl", "draws") and not options.trl_python.is_file():
        raise UsageError(f"--trl-python {options.trl_python}: there is no such file; `make study-trl` makes it")
    if options.study == "engine" and not options.vllm_python.is_file():
        raise UsageError(f"--vllm-python {options.vllm_python}: there is no such file; `make study-engine` makes it")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings.output.mkdir(parents=True, exist_ok=True)
    with interruptible(), ExitStack() as servers:

        @cache
        def serve_policy(policy: Path) -> str:
            log = settings.output / f"vllm-{policy.parent.name}.log"
            return servers.enter_context(serving_policy(options.vllm_python.absolute(), policy, log))

        for seed in settings.seeds:
            ensure_ground(settings.demo(seed), settings.ground(seed), sys.stderr)
            progress = Progress(sys.stderr, len(runs) + (options.study == "best-of-n"))
            if options.study == "best-of-n":
                ensure_samples(settings, seed, progress)
            for variants in runs:
                ensure_runs(
                    settings,
                    variants,
                    seed,
                    trl_python=options.trl_python,
                    serve_policy=serve_policy,
                    progress=progress,
                )
    result = report(settings)
    page = result.write(settings.output)
    print(result.table())
    print(f"\n{page}")
    return 0
