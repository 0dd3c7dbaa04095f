"""One PPO run as a process of its own: `python -m plaudit_demo.studies.workers.worker SPEC.json`.

Runs in the environment of its trainer, plaudit's or TRL's. Takes a turn for each line on stdin, an iteration or, first,
the evaluation before training, and answers with one JSON line on stdout. So two trainers can take turns on one machine,
and what they take is compared iteration by iteration.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from plaudit_client import RewardClient
from plaudit_demo.output import read_jsonl
from plaudit_demo.report.evaluation import Evaluation, evaluate
from plaudit_demo.studies.spec import RunSpec
from plaudit_demo.studies.workers.recorder import Recorder
from plaudit_ppo import frozen_copy, load_policy

_SCORE_TIMEOUT_S = 60.0


def main() -> None:
    """Run what the file named on the command line describes."""
    spec = RunSpec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with (
        os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as output,
        redirect_stdout(sys.stderr),  # trainers print
        RewardClient(spec.url, api_key="", timeout_s=_SCORE_TIMEOUT_S) as client,
    ):
        policy, tokenizer = load_policy(spec.policy)
        recorder = Recorder(
            _evaluator(spec, policy, tokenizer, client),
            every=spec.evaluate_every,
            last=spec.iterations,
            turns=sys.stdin,
            output=output,
        )
        if spec.trainer == "plaudit":
            from plaudit_demo.studies.workers.plaudit_trainer import train
        else:
            from plaudit_demo.studies.workers.trl_trainer import train
        train(spec, policy, tokenizer, client, recorder)


def _evaluator(
    spec: RunSpec, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, client: RewardClient
) -> Callable[[], Mapping[str, float]]:
    """A function that measures the policy as it is when called: always on the same prompts, with the same seed."""
    reference = frozen_copy(policy)
    prompts = [row["prompt"] for row in read_jsonl(spec.held_out_prompts)]

    def measure() -> Mapping[str, float]:
        return _figures(
            evaluate(
                policy,
                reference,
                tokenizer,
                prompts,
                client,
                max_tokens=spec.max_completion_tokens,
                temperature=spec.temperature,
                seed=spec.seed,
            )
        )

    return measure


def _figures(evaluation: Evaluation) -> Mapping[str, float]:
    return {
        "gold": evaluation.gold_mean,
        "gold_std": evaluation.gold_std,
        "score": evaluation.score_mean,
        "score_std": evaluation.score_std,
        "kl": evaluation.kl_mean,
        "tokens": evaluation.tokens_mean,
        "finished": sum(completion.finished for completion in evaluation.completions) / len(evaluation.completions),
    }


if __name__ == "__main__":
    main()
