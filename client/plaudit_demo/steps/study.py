"""The study of process rewards, for one seed: SFT policy, reward model by TRL, bundle, service, PPO, figures."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_demo.data.corpus import Example
from plaudit_demo.data.sampling import sample_completions
from plaudit_demo.output import prepare_output, read_json, write_json, write_jsonl
from plaudit_demo.processes import command, run_to_end
from plaudit_demo.progress import Progress
from plaudit_demo.service import serving
from plaudit_demo.steps.counting import SEPARATOR, Task, judge, make_tasks, read_task, split_steps, write_steps
from plaudit_demo.training.warm_up import make_warmed_up_policy
from plaudit_ppo import PPOConfig, load_policy
from plaudit_ppo.settings_text import to_toml

NUM_STAGES = 5
_DONE = "summary.json"
_MAX_TOKENS = 96  # positions of every model
_MAX_COMPLETION_TOKENS = 32
_SCORE_TIMEOUT_S = 60.0
_REWARD_CLIP = 2.0  # of a step's log odds, so that being surer of a step gains little


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Sizes of the study.

    Attributes:
        error_rate: how often a step is miscounted in what the policy is warmed up on, and the reward model trained.
        held_out_tasks: that only the figures are of.
        examples: texts to warm up on, and as many others to train the reward model on.
        hidden_size: of all models.
        layers: of all models.
        warm_up_steps: optimizer steps.
        reward_model_epochs: passes over the examples.
        iterations: of PPO.
        samples: completions of each held-out task, before and after.
    """

    error_rate: float = 0.15
    held_out_tasks: int = 48
    examples: int = 4000
    hidden_size: int = 96
    layers: int = 2
    warm_up_steps: int = 700
    reward_model_epochs: int = 8
    iterations: int = 40
    samples: int = 8


@dataclass(frozen=True)
class Figures:
    """What a policy does on the held-out tasks.

    Attributes:
        step_errors: share of its steps that are wrong.
        solved: share of its completions that are right steps alone, up to the end, and are finished.
        steps: of a completion, on average.
    """

    step_errors: float
    solved: float
    steps: float


def run_seed(settings: StepSettings, directory: Path, *, seed: int, trl_python: Path, progress: Progress) -> None:
    """Run all stages of a seed, unless they have been run with these settings; leaves `summary.json` in the directory.

    Raises:
        DemoError: a stage failed.
    """
    if read_summary(directory).get("settings") == asdict(settings):
        return
    output, rng = prepare_output(directory), random.Random(seed)
    tasks = make_tasks()
    rng.shuffle(tasks)
    held_out, known = tasks[: settings.held_out_tasks], tasks[settings.held_out_tasks :]
    write_jsonl(output / "prompts.jsonl", ({"prompt": task.prompt} for task in known))
    _warm_up(settings, output, known, rng, seed, progress)
    _train_reward_model(settings, output, known, rng, seed, trl_python, progress)
    _export(output, progress)
    _train_policy(settings, output, seed, progress)
    with progress.stage(f"seed {seed}: measure", 2) as stage:
        figures: dict[str, Figures] = {}
        for moment, policy in (("before", output / "policy"), ("after", output / "ppo" / "policy")):
            figures[moment] = _measure(settings, policy, held_out, seed)
            stage.advance(note=f"step errors {figures[moment].step_errors:.3f}")
    write_json(
        output / _DONE,
        {"seed": seed, "settings": asdict(settings), **{name: asdict(each) for name, each in figures.items()}},
    )


def read_summary(directory: Path) -> Mapping[str, Any]:
    """What a seed has left; empty where it has not come to its end."""
    return read_json(directory / _DONE)


def _examples(settings: StepSettings, tasks: Sequence[Task], rng: random.Random) -> list[tuple[Task, list[str]]]:
    chosen = [rng.choice(tasks) for _ in range(settings.examples)]
    return [(task, write_steps(task, rng, error_rate=settings.error_rate)) for task in chosen]


def _warm_up(
    settings: StepSettings, output: Path, tasks: Sequence[Task], rng: random.Random, seed: int, progress: Progress
) -> None:
    """The SFT policy, in `policy`: it miscounts as often as its examples do."""
    with progress.stage(f"seed {seed}: warm up the policy", settings.warm_up_steps) as stage:
        examples = [Example(task.prompt, SEPARATOR.join(steps)) for task, steps in _examples(settings, tasks, rng)]
        make_warmed_up_policy(
            output / "policy",
            examples,
            vocab_size=400,
            hidden_size=settings.hidden_size,
            num_layers=settings.layers,
            max_tokens=_MAX_TOKENS,
            num_steps=settings.warm_up_steps,
            batch_size=32,
            learning_rate=3e-3,
            seed=seed,
            on_step=lambda loss: stage.advance(note=f"loss {loss:.2f}"),
        )


def _train_reward_model(
    settings: StepSettings,
    output: Path,
    tasks: Sequence[Task],
    rng: random.Random,
    seed: int,
    trl_python: Path,
    progress: Progress,
) -> None:
    """TRL's checkpoint, in `reward-model`: the SFT policy with a head of two labels for each token."""
    with progress.stage(f"seed {seed}: reward model by TRL") as stage:
        examples = _examples(settings, tasks, rng)
        write_jsonl(
            output / "examples.jsonl",
            ({"prompt": task.prompt, "completions": steps, "labels": judge(task, steps)} for task, steps in examples),
        )
        spec = {
            "seed": seed,
            "output": str(output / "reward-model"),
            "model": str(output / "policy"),
            "examples": str(output / "examples.jsonl"),
            "epochs": settings.reward_model_epochs,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "step_separator": SEPARATOR,
        }
        write_json(output / "reward-model.json", spec)
        worker = [str(trl_python), "-m", "plaudit_demo.steps.trl_process_reward_model"]
        run_to_end([*worker, str(output / "reward-model.json")], output / "trl.log", on_poll=lambda: stage.advance(0))
        stage.advance()


def _export(output: Path, progress: Progress) -> None:
    """The bundle; `--link identity`: a step's score is the log odds that it is right."""
    with progress.stage("export") as stage:
        arguments = [command("plaudit-export"), "checkpoint", str(output / "reward-model"), str(output / "bundle")]
        arguments += ["--step-end", r"\n", "--link", "identity"]
        run_to_end(arguments, output / "plaudit-export.log", on_poll=lambda: stage.advance(0))
        stage.advance()


def _train_policy(settings: StepSettings, output: Path, seed: int, progress: Progress) -> None:
    """PPO by the commands that a user runs."""
    log, known = output / "ppo" / "log.jsonl", 0

    def show() -> None:
        nonlocal known
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        stage.advance(lines - known)
        known = lines

    with (
        progress.stage(f"seed {seed}: PPO", settings.iterations) as stage,
        serving(
            output / "bundle",
            output / "plaudit-serve.log",
            num_threads=1,
            timeout_s=_SCORE_TIMEOUT_S,
            on_poll=lambda: stage.advance(0),
        ) as (url, _),
    ):
        config = PPOConfig(
            policy=str(output / "policy"),
            prompts=(str(output / "prompts.jsonl"),),
            scorer_urls=(url,),
            output=str(output / "ppo"),
            iterations=settings.iterations,
            rollout_batch_size=64,
            rollout_micro_batch_size=32,
            micro_batch_size=32,
            num_minibatches=2,
            max_completion_tokens=_MAX_COMPLETION_TOKENS,
            temperature=1.0,
            warmup_iterations=5,
            learning_rate=3e-4,
            kl_coef=0.02,
            reward_along="steps",
            step_separator=SEPARATOR,
            score_clip=_REWARD_CLIP,
            missing_eos_score=-_REWARD_CLIP,
            seed=seed,
        )
        (output / "ppo.toml").write_text(to_toml(config), encoding="utf-8")
        arguments = ["env", "OMP_NUM_THREADS=1", command("plaudit-ppo"), "train", "--config", str(output / "ppo.toml")]
        run_to_end(arguments, output / "plaudit-ppo.log", on_poll=show)
        show()


def _measure(settings: StepSettings, directory: Path, tasks: Sequence[Task], seed: int) -> Figures:
    policy, tokenizer = load_policy(str(directory))
    assert isinstance(policy, LlamaForCausalLM)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    prompts = [task.prompt for task in tasks for _ in range(settings.samples)]
    with torch.no_grad():
        completions = sample_completions(
            policy.eval(),
            tokenizer,
            prompts,
            max_tokens=_MAX_COMPLETION_TOKENS,
            temperature=1.0,
            seed=seed,
        )
    judged, solved = [], 0
    for prompt, completion in zip(prompts, completions, strict=True):
        task, steps = read_task(prompt), split_steps(completion.text)
        right = judge(task, steps)
        judged += right
        solved += completion.finished and all(right) and bool(steps) and int(steps[-1]) == task.end
    return Figures(
        step_errors=1 - sum(judged) / len(judged), solved=solved / len(prompts), steps=len(judged) / len(prompts)
    )
