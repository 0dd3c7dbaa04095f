"""The seven stages of the demo, one after the other, and the files that each leaves in the output directory."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from plaudit_client import RewardClient
from plaudit_client.whole_files import write_file
from plaudit_demo.data.corpus import make_corpus, make_prompts
from plaudit_demo.data.gold import gold_reward
from plaudit_demo.data.preferences import Pair, best_accuracy, draw_pairs
from plaudit_demo.data.sampling import sample_completions
from plaudit_demo.errors import DemoError
from plaudit_demo.output import read_jsonl, write_json, write_jsonl
from plaudit_demo.processes import command, run_to_end
from plaudit_demo.progress import Progress, Stage
from plaudit_demo.report.evaluation import Evaluation, evaluate, sample_rows
from plaudit_demo.report.page import make_page
from plaudit_demo.report.results import Results
from plaudit_demo.service import fetch_metrics, read_latency, serving
from plaudit_demo.settings import DemoSettings
from plaudit_demo.training.models import (
    make_sequence_classifier,
    train_reward_model_tokenizer,
)
from plaudit_demo.training.ppo import ppo_config, train_policy
from plaudit_demo.training.reward_model import pair_accuracy, train_reward_model
from plaudit_demo.training.warm_up import make_warmed_up_policy
from plaudit_ppo import TrainSummary, load_policy
from plaudit_ppo.runs.log import Metrics

NUM_STAGES = 7
WARMED_UP, REWARD_MODEL, BUNDLE, PPO = "policy-warmed-up", "reward-model", "bundle", "ppo"
_MAX_TOKENS = 160  # positions of every model; the longest prompt with the longest completion has fewer
_SCORE_TIMEOUT_S = 30.0
_NUM_GOLDEN = 32


def run_demo(settings: DemoSettings, output: Path, progress: Progress) -> Results:
    """Run all stages.

    Args:
        settings: the sizes.
        output: an empty directory, from `prepare_output`.
        progress: shows the stages.

    Returns:
        What was measured; also written to `summary.json` and `index.html`.

    Raises:
        DemoError: a stage failed.
    """
    started = time.monotonic()
    seeds = count(settings.seed * 1000)
    ground = make_ground(settings, output, progress, seeds)
    with ExitStack() as stack:
        with progress.stage("start the service") as stage:
            url, client = stack.enter_context(_serving(settings, output, stage))
            stage.advance()
        trained = _train_policy(settings, url, client, output, progress)
        before, after = _evaluate(settings, ground.held_out_prompts, client, output, progress, next(seeds))
        metrics = fetch_metrics(url)
        (output / "metrics.txt").write_text(metrics, encoding="utf-8")
    results = Results(
        settings=settings,
        prompts=ground.held_out_prompts,
        before=before,
        after=after,
        log=read_jsonl(output / PPO / "log.jsonl"),
        pair_accuracy=ground.pair_accuracy,
        best_pair_accuracy=ground.best_pair_accuracy,
        num_pairs=ground.num_pairs,
        latency=read_latency(metrics),
        exposed_wait_share=trained.exposed_wait_share,
        masked_share=trained.masked_share,
        seconds=time.monotonic() - started,
        stage_seconds=progress.seconds,
    )
    write_json(output / "summary.json", results.summary())
    write_file(output / "index.html", make_page(results))
    return results


@dataclass(frozen=True)
class Ground:
    """What PPO stands on; the models lie in the output directory.

    Attributes:
        held_out_prompts: those that neither the reward model nor PPO sees.
        num_pairs: that the reward model was trained on.
        pair_accuracy: of the reward model, on held-out pairs.
        best_pair_accuracy: what the gold reward itself would reach on them.
    """

    held_out_prompts: list[str]
    num_pairs: int
    pair_accuracy: float
    best_pair_accuracy: float


def make_ground(settings: DemoSettings, output: Path, progress: Progress, seeds: Iterator[int]) -> Ground:
    """Run the stages before the service: prompts, warmed-up policy, pairs, reward model, bundle.

    Args:
        settings: the sizes.
        output: an empty directory, from `prepare_output`.
        progress: shows the stages.
        seeds: of each stage that draws random numbers.

    Raises:
        DemoError: a stage failed.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(settings.trainer_threads)
    seen, held_out = _split_prompts(settings, output, next(seeds))
    policy, tokenizer = _warm_up(settings, seen, output, progress, next(seeds))
    pairs, held_out_pairs = _sample_pairs(settings, policy, tokenizer, (seen, held_out), output, progress, next(seeds))
    accuracy = _train_reward_model(settings, pairs, held_out_pairs, output, progress, next(seeds))
    _export(held_out_pairs, output, progress)
    return Ground(held_out, len(pairs), accuracy, best_accuracy(held_out_pairs))


def _split_prompts(settings: DemoSettings, output: Path, seed: int) -> tuple[list[str], list[str]]:
    """The prompts to train on, and those that are held out."""
    prompts = make_prompts()
    random.Random(seed).shuffle(prompts)
    held_out, seen = prompts[: settings.num_held_out_prompts], prompts[settings.num_held_out_prompts :]
    write_jsonl(output / "prompts.jsonl", [{"prompt": prompt} for prompt in seen])
    write_jsonl(output / "held-out-prompts.jsonl", [{"prompt": prompt} for prompt in held_out])
    return seen, held_out


def _warm_up(
    settings: DemoSettings, prompts: Sequence[str], output: Path, progress: Progress, seed: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    with progress.stage("warm up the policy", settings.warm_up_steps) as stage:
        examples = make_corpus(prompts, settings.corpus_examples, seed=seed)
        return make_warmed_up_policy(
            output / WARMED_UP,
            examples,
            vocab_size=settings.policy_vocab_size,
            hidden_size=settings.policy_hidden_size,
            num_layers=settings.policy_layers,
            max_tokens=_MAX_TOKENS,
            num_steps=settings.warm_up_steps,
            batch_size=settings.warm_up_batch,
            learning_rate=settings.warm_up_learning_rate,
            seed=seed,
            on_step=lambda loss: stage.advance(note=f"loss {loss:.2f}"),
        )


def _sample_pairs(
    settings: DemoSettings,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt_sets: Sequence[Sequence[str]],
    output: Path,
    progress: Progress,
    seed: int,
) -> list[list[Pair]]:
    """Pairs of the prompts to train on, and of those that are held out."""
    sizes = (settings.num_pairs, settings.num_held_out_pairs)
    rng = random.Random(seed)
    pair_sets = []
    with progress.stage("sample preference pairs", 2 * sum(sizes)) as stage:
        for name, size, prompts in zip(("pairs", "held-out-pairs"), sizes, prompt_sets, strict=True):
            drawn = rng.choices(prompts, k=size)
            completions = sample_completions(
                policy,
                tokenizer,
                drawn + drawn,
                max_tokens=settings.max_completion_tokens,
                temperature=settings.temperature,
                seed=rng.randrange(2**32),
                on_batch=lambda rollouts: stage.advance(len(rollouts)),
            )
            pairs = draw_pairs(drawn, completions[:size], completions[size:], gold_reward, seed=rng.randrange(2**32))
            if not pairs:
                raise DemoError("no two completions of a prompt were finished and different; warm up for more steps")
            write_jsonl(output / f"{name}.jsonl", map(asdict, pairs))
            pair_sets.append(pairs)
    return pair_sets


def _train_reward_model(
    settings: DemoSettings,
    pairs: Sequence[Pair],
    held_out_pairs: Sequence[Pair],
    output: Path,
    progress: Progress,
    seed: int,
) -> float:
    """Train the reward model and return its pair accuracy."""
    steps = settings.reward_model_epochs * -(-len(pairs) // settings.reward_model_batch)
    with progress.stage("train the reward model", steps) as stage:
        tokenizer = train_reward_model_tokenizer(pair.prompt + pair.chosen for pair in pairs)
        model = make_sequence_classifier(
            tokenizer,
            hidden_size=settings.reward_model_hidden_size,
            num_layers=settings.reward_model_layers,
            max_tokens=_MAX_TOKENS,
            seed=seed,
        )
        train_reward_model(
            model,
            tokenizer,
            pairs,
            num_epochs=settings.reward_model_epochs,
            batch_size=settings.reward_model_batch,
            learning_rate=settings.reward_model_learning_rate,
            seed=seed,
            output=output / REWARD_MODEL,
            on_step=lambda loss: stage.advance(note=f"loss {loss:.2f}"),
        )
        accuracy = pair_accuracy(model, tokenizer, held_out_pairs)
        stage.advance(0, f"pair accuracy {accuracy:.3f}")
    return accuracy


def _export(pairs: Sequence[Pair], output: Path, progress: Progress) -> None:
    with progress.stage("export the bundle") as stage:
        golden = output / "golden-items.jsonl"
        write_jsonl(golden, [{"prompt": pair.prompt, "completion": pair.chosen} for pair in pairs[:_NUM_GOLDEN]])
        arguments = [command("plaudit-export"), "checkpoint", str(output / REWARD_MODEL), str(output / BUNDLE)]
        arguments += ["--golden", str(golden)]
        run_to_end(arguments, output / "plaudit-export.log", on_poll=lambda: stage.advance(0))
        stage.advance()


def _serving(settings: DemoSettings, output: Path, stage: Stage) -> AbstractContextManager[tuple[str, RewardClient]]:
    return serving(
        output / BUNDLE,
        output / "plaudit-serve.log",
        num_threads=settings.service_threads,
        timeout_s=_SCORE_TIMEOUT_S,
        on_poll=lambda: stage.advance(0),
    )


def _train_policy(
    settings: DemoSettings, url: str, client: RewardClient, output: Path, progress: Progress
) -> TrainSummary:
    with progress.stage("train by PPO over HTTP", settings.ppo_iterations) as stage:

        def show(metrics: Metrics) -> None:
            names = {"gold": "eval/scores", "score": "scoring/score_mean", "KL": "objective/kl"}
            stage.advance(note=" ".join(f"{label} {metrics[name] or 0:.2f}" for label, name in names.items()))

        config = ppo_config(
            settings, output / PPO, policy=output / WARMED_UP, prompts=output / "prompts.jsonl", url=url
        )
        return train_policy(config, client, on_iteration=show)


def _evaluate(
    settings: DemoSettings, prompts: Sequence[str], client: RewardClient, output: Path, progress: Progress, seed: int
) -> tuple[Evaluation, Evaluation]:
    """The policy before and after PPO, on the held-out prompts, sampled with the same seed."""
    with progress.stage("evaluate before and after", 2 * len(prompts)) as stage:
        reference, tokenizer = load_policy(output / WARMED_UP)
        policy, _ = load_policy(output / PPO / "policy")

        def measure(model: LlamaForCausalLM) -> Evaluation:
            evaluation = evaluate(
                model,
                reference,
                tokenizer,
                prompts,
                client,
                max_tokens=settings.max_completion_tokens,
                temperature=settings.temperature,
                seed=seed,
            )
            stage.advance(len(prompts), f"gold {evaluation.gold_mean:.2f}")
            return evaluation

        before, after = measure(reference), measure(policy)
        write_jsonl(output / "samples.jsonl", sample_rows(prompts, before, after))
    return before, after
