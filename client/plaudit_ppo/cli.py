"""The `plaudit-ppo` command: writes a configuration, plans a run by one, trains by it, and reports."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from plaudit_client.command_line import Parser, interruptible, run, say, tell
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.termination import Terminated, Termination, leave

# What plaudit[train] brings is imported in functions: it may not be installed, and some of it takes seconds.
if TYPE_CHECKING:
    from plaudit_ppo.config import PPOConfig
    from plaudit_ppo.launch import Scorers


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0: done. 1: it failed. 2: what the user gave is wrong. 130: interrupted by SIGINT or SIGTERM.
    """
    return run("plaudit-ppo", lambda: _run_until_terminated(argv), extra="train", quiet=not _is_first_process())


def command() -> NoReturn:
    """The process of the command: runs it, and ends with it."""
    leave(main())


def _run_until_terminated(argv: Sequence[str] | None) -> int:
    try:
        return _run(argv, Termination())
    except Terminated as error:
        _say(f"plaudit-ppo: terminated {error}; continue with --resume" if str(error) else "plaudit-ppo: terminated")
        return 130


def _run(argv: Sequence[str] | None, termination: Termination) -> int:
    arguments = _parser().parse_args(argv)
    exit_code: int = arguments.do(arguments, termination)
    return exit_code


def _report(arguments: argparse.Namespace, _: Termination) -> int:
    from plaudit_ppo.runs.report import write_report

    tell(str(write_report(Path(arguments.directory))))
    return 0


def _init(arguments: argparse.Namespace, _: Termination) -> int:
    from plaudit_ppo.config import PPOConfig
    from plaudit_ppo.settings_text import new_file, read_assignments

    text = new_file(PPOConfig(**read_assignments(arguments.set)))
    if arguments.file == "-":
        tell(text.rstrip("\n"))
        return 0
    try:
        with Path(arguments.file).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{arguments.file}: already exists and was not changed; choose another file") from error
    except OSError as error:
        raise ConfigError(f"{arguments.file}: cannot be written ({error.strerror}); choose another file") from error
    tell(
        f"{arguments.file}: set policy, prompts and scorer_urls in this file, then run plaudit-ppo train "
        f"--config {arguments.file}"
    )
    return 0


def _plan(arguments: argparse.Namespace, _: Termination) -> int:
    from plaudit_ppo.launch import quiet_transformers
    from plaudit_ppo.planning.plan import default_device, make_plan, read_network_configs
    from plaudit_ppo.planning.plan_text import plan_json, plan_text, verdict
    from plaudit_ppo.planning.remedies import fit, remedies
    from plaudit_ppo.settings_text import load_config

    quiet_transformers()
    config = load_config(arguments.config, arguments.set)
    if not config.policy:
        raise ConfigError(f"{arguments.config}: policy not set; see docs/ppo.md for an example")
    networks = read_network_configs(config)
    plan = make_plan(config, networks, processes=arguments.processes, device=arguments.device or default_device())
    found = remedies(config, networks, plan)
    limit = None if arguments.memory is None else int(arguments.memory * 1e9)
    fits = limit is None or plan.peak <= limit
    fitting = None if fits or limit is None else fit(config, networks, plan, limit)
    if arguments.json:
        settings = fitting and dict(fitting.settings)
        of_limit = {} if limit is None else {"memory_bytes": limit, "fits": fits, "fits_with": settings}
        tell(json.dumps(plan_json(config, plan, found) | of_limit, indent=2))
        return 0 if fits else 1
    tell(plan_text(config, plan, found))
    if limit is not None:
        tell(f"\n{verdict(plan, limit, fitting)}")
    return 0 if fits else 1


def _train(arguments: argparse.Namespace, termination: Termination) -> int:
    config = _configure(arguments)
    from plaudit_ppo.distributed.processes import end_processes
    from plaudit_ppo.dry_run import try_run
    from plaudit_ppo.launch import connected_scorers, quiet_transformers
    from plaudit_ppo.runs.progress import show_warnings

    quiet_transformers()
    show_warnings("plaudit-ppo", is_first_process=_is_first_process())
    with connected_scorers(config) as scorers:
        if arguments.dry_run:
            with interruptible():
                termination.listen()
                lines = try_run(config, scorers, termination=termination)
            lines.append(
                f"dry run: everything was loaded, and an iteration ran to its end; no file was left in {config.output}"
            )
        else:
            lines = [_run_to_the_end(config, scorers, resume=arguments.resume is not None, termination=termination)]
    end_processes()
    for line in lines if _is_first_process() else ():
        tell(line)
    return 0


def _run_to_the_end(config: "PPOConfig", scorers: "Scorers", *, resume: bool, termination: Termination) -> str:
    """Trains; returns a line on what has come of it."""
    from plaudit_ppo.launch import load_trainer
    from plaudit_ppo.runs.progress import Progress

    trainer = load_trainer(config, scorers)
    with interruptible(), Progress(config.iterations) as progress:
        termination.listen()
        on_iteration = progress if _is_first_process() else None
        summary = trainer.train(on_iteration=on_iteration, resume=resume, termination=termination)
    line = (
        f"{summary.extent} ({summary.scoring}): score {_number(summary.final['scoring/score_mean'])}, "
        f"KL {_number(summary.final['objective/kl'])}; policy in {config.output}/policy"
    )
    if not summary.held_out:
        return line
    evaluation = summary.held_out[-1]
    return (
        f"{line}; held out: score {_number(evaluation['heldout/scores'])}, "
        f"win rate {_number(evaluation['heldout/win_rate'])}, best policy in {config.output}/checkpoints/best/policy"
    )


def _parser() -> argparse.ArgumentParser:
    from plaudit_ppo.settings_text import settings_help

    parser = Parser(prog="plaudit-ppo", description="PPO for language models against a remote reward model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a policy",
        description="Train a causal LM by PPO. The output directory gets config.toml, log.jsonl, samples.jsonl, "
        "evaluations.jsonl and checkpoints/, and at the end policy/, critic/ and summary.json.",
        epilog=f"settings in the configuration file, with their defaults:\n\n{settings_help()}\n\nRelative paths "
        "start at the working directory. A flag overrides the environment variable, and the variable "
        "overrides the file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--config", metavar="FILE", help="TOML file with the settings below (default: DIR/config.toml)")
    _add_set(train, "replaces a setting of the file; may be given several times")
    place = train.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="DIR", help="replaces the setting `output`")
    place.add_argument(
        "--resume",
        metavar="DIR",
        help="continue the run in DIR from its newest checkpoint, or from its start if there is no checkpoint; "
        "with --config, start a new run if DIR holds none",
    )
    train.add_argument(
        "--url",
        metavar="URL[,URL...]",
        help="replaces the setting `scorer_urls` (environment variable: PLAUDIT_URL); the API key is read from "
        "PLAUDIT_API_KEY",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="load everything, run one tiny iteration and the steps at the end of a run, then remove all files",
    )
    train.set_defaults(do=_train)
    init = commands.add_parser(
        "init",
        help="write a settings file to start from",
        description="Write a file with all settings and their defaults. A comment explains each setting.",
    )
    init.add_argument(
        "file", metavar="FILE", nargs="?", default="run.toml", help="file to create (default: run.toml); - is stdout"
    )
    _add_set(init, "gives a setting another value than its default; may be given several times")
    init.set_defaults(do=_init)
    plan = commands.add_parser(
        "plan",
        help="estimate the memory of a run",
        description="Estimate the memory of each process of a run, part by part, and how much some settings would "
        "save. Only the configs of the networks are read, no weights.",
    )
    plan.add_argument("--config", metavar="FILE", required=True, help="TOML file with the settings of the run")
    _add_set(plan, "replaces a setting of the file; may be given several times")
    plan.add_argument(
        "--processes", metavar="N", type=_count, default=1, help="number of processes of the run (default: 1)"
    )
    plan.add_argument(
        "--device", choices=("cpu", "cuda"), help="device of the run (default: cuda if this machine has it)"
    )
    plan.add_argument(
        "--memory",
        metavar="GB",
        type=_positive,
        help="memory of each process: prints which settings would make the run fit; exit code 1 if the run does "
        "not fit without them",
    )
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of text; sizes are in bytes")
    plan.set_defaults(do=_plan)
    report = commands.add_parser(
        "report",
        help="write an HTML report of a run",
        description="Write DIR/report.html. This works while the run still goes on.",
    )
    report.add_argument("directory", metavar="DIR", help="output directory of a run")
    report.set_defaults(do=_report)
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}; give a whole number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}; give a number above 0")
    return number


def _add_set(parser: argparse.ArgumentParser, text: str) -> None:
    from plaudit_ppo.config import setting_schemas

    action = parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    names = [f"{name}=" for name in setting_schemas()]
    action.completer = lambda **_: names  # type: ignore[attr-defined]  # argcomplete asks for it


def _configure(arguments: argparse.Namespace) -> "PPOConfig":
    """The settings of the file, with what flags and environment replace."""
    from plaudit_ppo.distributed.deepspeed_settings import check_zero
    from plaudit_ppo.settings_text import load_config, read_assignments

    if arguments.config is None and arguments.resume is None:
        raise ConfigError("--config FILE or --resume DIR is needed; see plaudit-ppo train --help")
    if arguments.dry_run and arguments.resume is not None:
        raise ConfigError("--dry-run: tests a new run, so it cannot be combined with --resume; leave one of them out")
    file = arguments.config or _settings_of_run(Path(arguments.resume))
    assigned = read_assignments(arguments.set)
    config = load_config(file, arguments.set)
    if arguments.output is not None:
        config = replace(config, output=arguments.output)
    url = arguments.url or ("" if "scorer_urls" in assigned else os.environ.get("PLAUDIT_URL"))
    if url:
        config = replace(config, scorer_urls=(url,), scorer_weights=())
    if arguments.resume is not None:
        config = _resumed(Path(arguments.resume), replace(config, output=arguments.resume))
    check_zero(config)
    needed = {"policy": config.policy, "prompts": config.prompts, "scorer_urls (or --url)": config.scorer_urls}
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise ConfigError(f"{file}: {', '.join(missing)} not set; see docs/ppo.md for an example")
    return config


def _settings_of_run(directory: Path) -> Path:
    """The file that the run in a directory has left."""
    file = directory / "config.toml"
    if not file.exists():
        raise ConfigError(
            f"{directory} holds no run (no config.toml); give the output directory of a run, or start a new run "
            "there with --config FILE"
        )
    return file


def _resumed(directory: Path, config: "PPOConfig") -> "PPOConfig":
    """The settings, with the commits of the hub that the run began with; says which others have changed."""
    from plaudit_ppo.models.places import keep_commit
    from plaudit_ppo.settings_text import changed_settings, load_config

    file = directory / "config.toml"
    if file.exists():
        before = replace(load_config(file), output=config.output)  # DIR, however it is spelled
        config = replace(
            config,
            policy=keep_commit(config.policy, before.policy),
            critic=keep_commit(config.critic, before.critic),
        )
        for change in changed_settings(before, config):
            _say(f"plaudit-ppo: changed since the run began: {change}")
    elif not (directory / "checkpoints").exists():
        _say(f"plaudit-ppo: {directory} holds no run yet; a new one starts there")
    return config


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _is_first_process() -> bool:
    """Of those that torchrun or `accelerate launch` starts, all of which come to the same end."""
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    if _is_first_process():
        say(line)
