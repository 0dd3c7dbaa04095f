"""Several PPO runs against the same stand-in replicas: how their rollouts per second grow with their number.

Each run is a `plaudit-ppo` process with a tiny policy, so that most of an iteration is spent waiting for scores. With
each run there are as many replicas more, and all runs share all replicas.
"""

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

from nemesis.models import write_policy
from nemesis.replicas import Replica
from nemesis.training import TRAIN, training
from scale_client import TOKENS, text
from servers import cpu_seconds, machine_seconds, num_cores
from transformers.utils import logging

from plaudit_ppo import PPOConfig
from plaudit_ppo.runs.log import read_log
from plaudit_ppo.settings_text import to_toml

ROLLOUTS, COMPLETION_TOKENS = 32, 8
# Prompts of one run; no two runs share one, because the service computes equal sequences once.
_PROMPTS = 1024
_START_S = 240.0
# Iterations that are not counted, and those that have to be.
_WARM_UP, _FEWEST = 2, 3


@dataclass(frozen=True)
class PPORow:
    """One measurement.

    Attributes:
        runs: PPO processes.
        replicas: That all of them share.
        rollouts_per_s: All runs together.
        iteration_s: Mean of all runs.
        waiting: Share of an iteration in which a run stood still for scores.
        of_linear: Rollouts per second, over those of the first row for as many runs.
        busiest_client: CPU time of the busiest PPO process over the time that passed.
        machine: CPU time of all processes over that of all cores.
    """

    runs: int
    replicas: int
    rollouts_per_s: float
    iteration_s: float
    waiting: float
    of_linear: float
    busiest_client: float
    machine: float


def measure_ppo(running: Sequence[Replica], runs: int, seconds: float, folder: Path) -> PPORow:
    """Train for so long, from the moment at which all runs are past their first iterations.

    Raises:
        RuntimeError: a run ended, did not get so far, or has too few iterations within the time.
    """
    logging.disable_progress_bar()
    folder.mkdir(parents=True)
    write_policy(folder / "policy", max_tokens=TOKENS)
    outputs = [folder / f"run-{number}" for number in range(runs)]
    with ExitStack() as stack:
        processes = [stack.enter_context(training(TRAIN, ["--config", str(_write(out, running))])) for out in outputs]
        _wait_for_iterations(processes, outputs)
        before = [len(read_log(output / "log.jsonl")) for output in outputs]
        machine_s, cpu_s, began = machine_seconds(), [cpu_seconds(each.pid) for each in processes], time.monotonic()
        time.sleep(seconds)
        machine_s, passed_s = machine_seconds() - machine_s, time.monotonic() - began
        busiest_s = max(cpu_seconds(each.pid) - old for each, old in zip(processes, cpu_s, strict=True))
        logs = [read_log(output / "log.jsonl")[old:] for output, old in zip(outputs, before, strict=True)]
    if min(map(len, logs)) < _FEWEST:
        raise RuntimeError(f"{runs} PPO runs: one has {min(map(len, logs))} iterations within {seconds:g} s; give more")
    times = [statistics.mean(line["time/iteration_s"] for line in log) for log in logs]
    waits = [statistics.mean(line["scoring/exposed_wait_s"] for line in log) for log in logs]
    return PPORow(
        runs,
        len(running),
        round(sum(ROLLOUTS / each for each in times), 1),
        round(statistics.mean(times), 3),
        round(sum(waits) / sum(times), 3),
        1.0,
        round(busiest_s / passed_s, 3),
        round(machine_s / passed_s / num_cores(), 3),
    )


def against_first(rows: Sequence[PPORow]) -> list[PPORow]:
    """The rows, each compared with the first one for as many runs."""
    return [
        replace(row, of_linear=round(row.rollouts_per_s / row.runs / (rows[0].rollouts_per_s / rows[0].runs), 3))
        for row in rows
    ]


def _wait_for_iterations(processes: "Sequence[Popen[str]]", outputs: Sequence[Path]) -> None:
    end = time.monotonic() + _START_S
    while min(len(read_log(output / "log.jsonl")) for output in outputs) < _WARM_UP:
        for process in processes:
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise RuntimeError(f"a PPO run did not begin (exit code {process.wait()}): {process.communicate()[1]}")
        time.sleep(0.1)


def _write(output: Path, running: Sequence[Replica]) -> Path:
    """The settings of one run, and its prompts."""
    prompts, config = output.with_suffix(".jsonl"), output.with_suffix(".toml")
    first = int(output.name.rpartition("-")[2]) * _PROMPTS
    lines = [json.dumps({"prompt": text(first + number, TOKENS - 1 - COMPLETION_TOKENS)}) for number in range(_PROMPTS)]
    prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = PPOConfig(
        policy=str(output.parent / "policy"),
        prompts=(str(prompts),),
        scorer_urls=(",".join(replica.url for replica in running),),
        output=str(output),
        iterations=1_000_000,
        rollout_batch_size=ROLLOUTS,
        rollout_micro_batch_size=4,
        scorer_concurrency=8,
        max_completion_tokens=COMPLETION_TOKENS,
        epochs=1,
        micro_batch_size=ROLLOUTS,
        missing_eos="off",
        checkpoint_every=0,
        sample_every=0,
    )
    config.write_text(to_toml(settings), encoding="utf-8")
    return config
