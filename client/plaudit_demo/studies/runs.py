"""PPO runs of a study: started as processes that take turns, kept when they are done, and not run again."""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from subprocess import Popen
from typing import Any

from plaudit_demo.output import read_jsonl, write_json, write_jsonl
from plaudit_demo.processes import failed, running
from plaudit_demo.progress import Stage
from plaudit_demo.studies.spec import RunSpec

_WORKER = ("-m", "plaudit_demo.studies.workers.worker")
_END_TIMEOUT_S = 120.0

Line = dict[str, Any]


def is_done(directory: Path, spec: RunSpec) -> bool:
    """Whether the directory holds a whole run of these settings; where the servers were does not matter."""
    path = directory / "spec.json"
    if not (directory / "lines.jsonl").is_file() or not path.is_file():
        return False
    former = json.loads(path.read_text(encoding="utf-8"))
    return _settings(former) == _settings(asdict(spec))


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("url", "engine_url")}


def read_lines(directory: Path) -> list[Line]:
    """What a run told: one object before training, and one per iteration."""
    return read_jsonl(directory / "lines.jsonl")


def run_in_turns(runs: Mapping[Path, RunSpec], pythons: Mapping[str, str], stage: Stage) -> None:
    """Run one or several trainings, of which only one computes at a time: they take turns after each iteration.

    The order changes with every round (A B, B A, A B, ...). Each leaves `spec.json`, `worker.log` and, once all have
    ended well, `lines.jsonl`.

    Args:
        runs: the settings of each, by the directory of what it leaves.
        pythons: the interpreter of each trainer's environment.
        stage: advances by one for each turn.

    Raises:
        DemoError: a run failed.
    """
    lines: dict[Path, list[Line]] = {directory: [] for directory in runs}
    with ExitStack() as stack:
        workers: list[tuple[Path, Popen[bytes]]] = []
        for directory, spec in runs.items():
            shutil.rmtree(directory, ignore_errors=True)  # of a run that was interrupted, or had other settings
            directory.mkdir(parents=True)
            write_json(directory / "spec.json", asdict(spec))
            arguments = [pythons[spec.trainer], *_WORKER, str(directory / "spec.json")]
            process = stack.enter_context(running(arguments, directory / "worker.log", piped=True))
            workers.append((directory, process))
        rounds = max(spec.iterations for spec in runs.values()) + 1
        for number in range(rounds):
            for directory, process in workers if number % 2 else reversed(workers):
                if number <= runs[directory].iterations:
                    lines[directory].append(_take_turn(process, directory))
                    stage.advance(note=_note(directory, lines[directory][-1]))
        for directory, process in workers:
            if (status := process.wait(_END_TIMEOUT_S)) != 0:
                raise failed(_arguments(process), status, directory / "worker.log")
    for directory, rows in lines.items():
        write_jsonl(directory / "lines.jsonl", rows)


def _take_turn(process: "Popen[bytes]", directory: Path) -> Line:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended, which the empty answer tells
    if not (answer := process.stdout.readline()):
        raise failed(_arguments(process), process.wait(_END_TIMEOUT_S), directory / "worker.log")
    line: Line = json.loads(answer)
    return line


def _arguments(process: "Popen[bytes]") -> Sequence[str]:
    assert isinstance(process.args, Sequence)
    return [str(argument) for argument in process.args]


def _note(directory: Path, line: Line) -> str:
    evaluation = line["evaluation"]
    figures = f" gold {evaluation['gold']:.2f} KL {evaluation['kl']:.2f}" if evaluation else ""
    return f"{directory.name}{figures}"
