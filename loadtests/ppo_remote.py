"""What a remote reward model costs PPO: the same training over HTTP and with the bundle in process, in pairs.

Both use the same bundle, engine and number of engine threads, and must end in the same weights. The trainer computes on
`--trainer-threads`, the engine on `--engine-threads`; together at most as many as there are cores. The models have the
demo's sizes and random weights, so few completions end early; with one seed every run does the same work. Prints
one table and, as the last line, one JSON object.

    .venv/bin/python loadtests/ppo_remote.py --help
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging

from plaudit_demo.data.corpus import make_corpus, make_prompts
from plaudit_demo.settings import DemoSettings
from plaudit_demo.training.models import (
    make_causal_lm,
    make_sequence_classifier,
    train_policy_tokenizer,
    train_reward_model_tokenizer,
)
from plaudit_ppo import PPOConfig, PPOTrainer, Prompt, RemoteScorer, TrainSummary, frozen_copy, load_critic, load_policy
from plaudit_ppo.scoring.pool import Scorer
from plaudit_service import Scorer as LocalScorer
from plaudit_service.testing import running_service

SIZES = DemoSettings()


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="counted pairs of runs (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=4, help="of each run (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="reward model to score with (default: one of the demo's size)")
    parser.add_argument("--trainer-threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--engine-threads", type=int, default=1, help="of the scoring engine (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.trainer_threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prompts = write_policy(work)
        bundle = options.bundle or write_bundle(work)
        flags = ["--num-threads", str(options.engine_threads)]
        service = stack.enter_context(running_service(bundle, flags=flags))
        remote = stack.enter_context(RemoteScorer(service.url, timeout_s=60))
        # One call at a time, because the service has one engine thread too.
        local = LocalScorer(bundle, num_threads=options.engine_threads).score
        ways: dict[str, tuple[Scorer, int]] = {
            "in process": (local, 1),
            "remote": (remote, PPOConfig().scorer_concurrency),
        }

        def run(way: str, number: int) -> tuple[TrainSummary, torch.Tensor]:
            scorer, concurrency = ways[way]
            config = ppo_config(work / f"{number}-{way}", iterations=options.iterations, concurrency=concurrency)
            return train(config, work / "policy", prompts, scorer)

        summaries = measure(run, list(ways), options.pairs)
    report(summaries, options)
    return 0


def measure(
    run: Callable[[str, int], tuple[TrainSummary, torch.Tensor]], ways: Sequence[str], pairs: int
) -> dict[str, list[TrainSummary]]:
    """The runs of each way, in turn and in alternating order, after one pair that is not counted."""
    summaries: dict[str, list[TrainSummary]] = {way: [] for way in ways}
    expected: torch.Tensor | None = None
    with tqdm(total=(pairs + 1) * len(ways), desc="training", unit="run", file=sys.stderr) as progress:
        for number in range(pairs + 1):
            for way in ways if number % 2 else reversed(ways):
                summary, weights = run(way, number)
                expected = weights if expected is None else expected
                assert torch.equal(weights, expected), f"{way}: other weights than the first run"
                if number > 0:
                    summaries[way].append(summary)
                progress.update()
    return summaries


def write_policy(work: Path) -> list[Prompt]:
    """A policy of the demo's size with random weights; returns prompts for it."""
    prompts = make_prompts()
    texts = [example.prompt + example.completion for example in make_corpus(prompts, 500, seed=0)]
    tokenizer = train_policy_tokenizer(texts, SIZES.policy_vocab_size)
    policy = make_causal_lm(
        tokenizer, hidden_size=SIZES.policy_hidden_size, num_layers=SIZES.policy_layers, max_tokens=160, seed=0
    )
    policy.save_pretrained(work / "policy")
    tokenizer.save_pretrained(work / "policy")
    return [Prompt(text=prompt) for prompt in prompts]


def write_bundle(work: Path) -> Path:
    """A reward model of the demo's size with random weights, exported."""
    texts = [example.prompt + example.completion for example in make_corpus(make_prompts(), 500, seed=0)]
    tokenizer = train_reward_model_tokenizer(texts)
    model = make_sequence_classifier(
        tokenizer,
        hidden_size=SIZES.reward_model_hidden_size,
        num_layers=SIZES.reward_model_layers,
        max_tokens=160,
        seed=0,
    )
    model.save_pretrained(work / "reward-model")
    tokenizer.save_pretrained(work / "reward-model")
    export = Path(sys.executable).with_name("plaudit-export")
    subprocess.run(
        [export, "checkpoint", work / "reward-model", work / "bundle"], check=True, stdout=subprocess.DEVNULL
    )
    return work / "bundle"


def ppo_config(output: Path, *, iterations: int, concurrency: int) -> PPOConfig:
    """The demo's settings."""
    return PPOConfig(
        output=str(output),
        iterations=iterations,
        rollout_batch_size=SIZES.ppo_rollouts,
        rollout_micro_batch_size=SIZES.ppo_micro_batch,
        micro_batch_size=SIZES.ppo_micro_batch,
        num_minibatches=SIZES.ppo_minibatches,
        max_completion_tokens=SIZES.max_completion_tokens,
        temperature=SIZES.temperature,
        learning_rate=SIZES.ppo_learning_rate,
        missing_eos="off",
        scorer_concurrency=concurrency,
        checkpoint_every=0,
    )


def train(
    config: PPOConfig, policy_path: Path, prompts: Sequence[Prompt], scorer: Scorer
) -> tuple[TrainSummary, torch.Tensor]:
    """One run: its summary, and all weights of policy and critic at its end."""
    policy, tokenizer = load_policy(policy_path)
    critic = load_critic(policy_path, head_init="normal", generator=torch.Generator().manual_seed(0))
    summary = PPOTrainer(config, policy, frozen_copy(policy), critic, tokenizer, prompts, scorer).train()
    assert summary.masked_share == 0, "some rollouts got no score, so the runs are not comparable"
    weights = [weight.detach().flatten() for model in (policy, critic) for weight in model.parameters()]
    return summary, torch.cat(weights)


def report(summaries: dict[str, list[TrainSummary]], options: argparse.Namespace) -> None:
    """Print the table and the JSON line."""
    local, remote = summaries["in process"], summaries["remote"]
    ratios = [b.seconds / a.seconds for a, b in zip(local, remote, strict=True)]
    print(
        f"\n{len(ratios)} pairs of {options.iterations} iterations, {SIZES.ppo_rollouts} rollouts of "
        f"up to {SIZES.max_completion_tokens} tokens; {options.trainer_threads} trainer and {options.engine_threads} "
        f"engine threads, {len(os.sched_getaffinity(0))} cores; same weights at the end of every run"
    )
    print(f"{'way':<14}{'s/iteration':>14}{'calls, s/iteration':>20}{'exposed wait':>14}")
    rows = {}
    for way, runs in summaries.items():
        rows[way] = {
            "iteration_s": statistics.median(run.seconds / run.iterations for run in runs),
            "call_s": statistics.median(run.call_s / run.iterations for run in runs),
            "exposed_wait_share": statistics.median(run.exposed_wait_share for run in runs),
        }
        row = rows[way]
        print(f"{way:<14}{row['iteration_s']:>14.3f}{row['call_s']:>20.3f}{row['exposed_wait_share']:>14.3%}")
    median = statistics.median(ratios)
    print(f"remote ÷ in process: median {median:.3f} of {', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))}")
    print(json.dumps({"benchmark": "ppo-remote", "ratio_median": median, "ratios": ratios, "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
