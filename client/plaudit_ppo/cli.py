"""The `plaudit-ppo` command: trains, with the models and scorers of a configuration, and reports."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit_client.command_line import Parser, interruptible, run, say, tell
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.termination import Terminated, Termination, leave

# What plaudit[train] brings is imported in functions: it may not be installed, and some of it takes seconds.
if TYPE_CHECKING:
    from plaudit_ppo.config import PPOConfig
    from plaudit_ppo.scoring.pool import Scorer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0: done. 1: it failed. 2: what the user gave is wrong. 130: interrupted by SIGINT or SIGTERM.
    """
    exit_code = run("plaudit-ppo", lambda: _run_until_terminated(argv), extra="train", quiet=not _is_first_process())
    leave(exit_code)
    return exit_code


def _run_until_terminated(argv: Sequence[str] | None) -> int:
    try:
        return _run(argv, Termination())
    except Terminated as error:
        _say(f"plaudit-ppo: terminated {error}; go on with --resume" if str(error) else "plaudit-ppo: terminated")
        return 130


def _run(argv: Sequence[str] | None, termination: Termination) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "report":
        from plaudit_ppo.runs.report import write_report

        tell(str(write_report(Path(arguments.directory))))
        return 0
    config = _configure(arguments)
    from plaudit_ppo.distributed.processes import end_processes
    from plaudit_ppo.scoring.combined import CombinedScorer
    from plaudit_ppo.scoring.remote import RemoteScorer

    with ExitStack() as stack:

        def connect(addresses: Sequence[str]) -> list["Scorer"]:
            scorers = [RemoteScorer(address, timeout_s=config.scorer_timeout_s) for address in addresses]
            return [stack.enter_context(scorer) for scorer in scorers]

        scorers, eval_scorers = connect(config.scorer_urls), connect(config.eval_scorer_urls)
        scorer = CombinedScorer(
            scorers, config.scorer_weights, combination=config.scorer_combination, std_coef=config.scorer_std_coef
        )
        eval_scorer = CombinedScorer(eval_scorers, combination="mean") if eval_scorers else None
        _train(config, scorer, eval_scorer, resume=arguments.resume is not None, termination=termination)
    end_processes()
    return 0


def _parser() -> argparse.ArgumentParser:
    from plaudit_ppo.config import settings_help

    parser = Parser(prog="plaudit-ppo", description="PPO for language models against a remote reward model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a policy",
        description="Train a causal LM by PPO. Leaves in the output directory: config.toml, log.jsonl, samples.jsonl, "
        "checkpoints/, and at the end policy/, critic/ and summary.json.",
        epilog=f"settings in the configuration file, with their defaults:\n\n{settings_help()}\n\n"
        "Relative paths start at the working directory. A flag wins over the environment, and that over the file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--config", metavar="FILE", help="TOML file with the settings below (default: DIR/config.toml)")
    place = train.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="DIR", help="instead of the setting `output`")
    place.add_argument(
        "--resume",
        metavar="DIR",
        help="go on with the run in DIR from its newest checkpoint, or from its start; with --config also begin one "
        "where DIR holds none",
    )
    train.add_argument(
        "--url",
        metavar="URL[,URL...]",
        default=os.environ.get("PLAUDIT_URL"),
        help="instead of the setting `scorer_urls` (environment: PLAUDIT_URL); PLAUDIT_API_KEY holds the key, if any",
    )
    report = commands.add_parser(
        "report", help="make a page of a run", description="Write DIR/report.html, also while the run still goes on."
    )
    report.add_argument("directory", metavar="DIR", help="output directory of a run")
    return parser


def _configure(arguments: argparse.Namespace) -> "PPOConfig":
    """The settings of the file, with what flags and environment replace."""
    from plaudit_ppo.config import load_config
    from plaudit_ppo.distributed.deepspeed_settings import check_zero

    if arguments.config is None and arguments.resume is None:
        raise ConfigError("--config FILE or --resume DIR is needed; see plaudit-ppo train --help")
    file = arguments.config or _settings_of_run(Path(arguments.resume))
    config = load_config(file)
    if arguments.output is not None:
        config = replace(config, output=arguments.output)
    if arguments.url:
        config = replace(config, scorer_urls=(arguments.url,), scorer_weights=())
    if arguments.resume is not None:
        config = replace(config, output=arguments.resume)
        _say_what_is_resumed(Path(arguments.resume), config)
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
            f"{directory} holds no run (no config.toml); give the output directory of one, or with --config FILE the "
            "settings of one that begins there"
        )
    return file


def _say_what_is_resumed(directory: Path, config: "PPOConfig") -> None:
    from plaudit_ppo.config import changed_settings, load_config

    file = directory / "config.toml"
    if file.exists():
        before = replace(load_config(file), output=config.output)  # DIR, however it is spelled
        for change in changed_settings(before, config):
            _say(f"plaudit-ppo: changed since the run began: {change}")
    elif not (directory / "checkpoints").exists():
        _say(f"plaudit-ppo: {directory} holds no run yet; one begins there")


def _train(
    config: "PPOConfig", scorer: "Scorer", eval_scorer: "Scorer | None", *, resume: bool, termination: Termination
) -> None:
    import torch
    from transformers.utils import logging

    from plaudit_ppo.models.critic import Critic, TrunkCritic, check_critic_tokens, load_critic
    from plaudit_ppo.models.lora import add_lora
    from plaudit_ppo.models.policy import frozen_copy, load_policy
    from plaudit_ppo.rollout.prompts import read_prompts
    from plaudit_ppo.rollout.seeding import seeded_generator
    from plaudit_ppo.runs.progress import Progress, show_warnings
    from plaudit_ppo.trainer import PPOTrainer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    show_warnings("plaudit-ppo", is_first_process=_is_first_process())
    prompts = read_prompts(config.prompts or "")
    policy, tokenizer = load_policy(config.policy or "", builtin_class=config.builtin_class)
    generator = seeded_generator(torch.device("cpu"), config.seed, "critic head")
    critic: Critic | TrunkCritic
    if config.critic_trunk == "policy":
        critic = TrunkCritic(policy, head_init=config.critic_head_init, generator=generator)
    else:
        start = config.critic or config.policy or ""
        check_critic_tokens(start, tokenizer)
        critic = load_critic(
            start, head_init=config.critic_head_init, generator=generator, builtin_class=config.builtin_class
        )
    reference = None if config.lora_rank else frozen_copy(policy)
    policy = add_lora(policy, config) if config.lora_rank else policy
    trainer = PPOTrainer(config, policy, reference, critic, tokenizer, prompts, scorer, eval_scorer)
    with interruptible(), Progress(config.iterations) as progress:
        termination.listen()
        on_iteration = progress if _is_first_process() else None
        summary = trainer.train(on_iteration=on_iteration, resume=resume, termination=termination)
    line = (
        f"{summary.extent} ({summary.scoring}): score {_number(summary.final['scoring/score_mean'])}, "
        f"KL {_number(summary.final['objective/kl'])}; policy in {config.output}/policy"
    )
    if _is_first_process():
        tell(line)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _is_first_process() -> bool:
    """Of those that torchrun or `accelerate launch` starts, all of which come to the same end."""
    return os.environ.get("RANK", "0") == "0"


def _say(line: str) -> None:
    if _is_first_process():
        say(line)
