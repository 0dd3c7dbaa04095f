"""Many completions of each held-out prompt by the SFT policy, each with gold reward, score and log-probability."""

import math
from pathlib import Path

import torch

from plaudit_demo.data.gold import gold_reward
from plaudit_demo.data.sampling import sample_completions
from plaudit_demo.errors import DemoError
from plaudit_demo.output import read_jsonl, write_jsonl
from plaudit_demo.progress import Progress
from plaudit_demo.run import WARMED_UP
from plaudit_demo.studies.ground import serving_ground
from plaudit_demo.studies.settings import StudySettings
from plaudit_ppo import load_policy
from plaudit_ppo.rollout.rollouts import Rollouts

NUM_COMPLETIONS = 32
_CALL = 256


def samples_path(settings: StudySettings, seed: int) -> Path:
    """Where the completions of a seed lie: one object each, those of a prompt one after the other."""
    return settings.output / f"{settings.name(f'sft-{NUM_COMPLETIONS}-samples', seed)}.jsonl"


def ensure_samples(settings: StudySettings, seed: int, progress: Progress) -> None:
    """Draw and score the completions of a seed, unless they are there.

    Raises:
        DemoError: a completion got no score.
    """
    path = samples_path(settings, seed)
    if path.is_file():
        return
    demo, ground = settings.demo(seed), settings.ground(seed)
    torch.set_num_threads(demo.trainer_threads)
    policy, tokenizer = load_policy(ground / WARMED_UP)
    held_out = [row["prompt"] for row in read_jsonl(ground / "held-out-prompts.jsonl")]
    prompts = [prompt for prompt in held_out for _ in range(NUM_COMPLETIONS)]
    logprobs: list[float] = []
    with (
        serving_ground(demo, ground) as (_, client),
        progress.stage(f"seed {seed}: sample the SFT policy", len(prompts)) as stage,
    ):

        def note(rollouts: Rollouts) -> None:
            logprobs.extend(rollouts.sampled_logprobs.sum(1).tolist())
            stage.advance(len(rollouts))

        completions = sample_completions(
            policy,
            tokenizer,
            prompts,
            max_tokens=demo.max_completion_tokens,
            temperature=demo.temperature,
            seed=seed,
            on_batch=note,
        )
        items = [
            {"prompt": prompt, "completion": completion.text, "finished": completion.finished}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        starts = range(0, len(items), _CALL)
        scores = [score for first in starts for score in client.score(items[first : first + _CALL]).floats]
    if failed := sum(math.isnan(score) for score in scores):
        raise DemoError(f"the service did not score {failed} of {len(scores)} completions")
    rows = [
        {**item, "gold": gold_reward(item["prompt"], item["completion"]), "score": score, "logprob": logprob}
        for item, score, logprob in zip(items, scores, logprobs, strict=True)
    ]
    write_jsonl(path, rows)
