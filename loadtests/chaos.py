"""Whether nothing is lost when faults come together: three replicas, a load with known scores and PPO under a nemesis.

The faults are drawn from a seed; docs/development/faults.md says which. Every score has to have the bits that it has
without faults, every call to end once, PPO to end in the bits of an undisturbed run, counters to add up, and processes
to hold no more in the end than at the start. With `--engine`, what samples PPO's rollouts has faults, too.

Exit code 0: nothing was wrong. 1: something was, and the shortest schedule that still fails is printed and kept. 2: the
arguments are wrong.

    make chaos        or        .venv/bin/python loadtests/chaos.py --minutes 5 --seed 7
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nemesis.disk import Disk
from nemesis.schedule import NEEDS_ENGINE, NEEDS_ROOT, Fault, draw, from_json, to_json
from nemesis.shrink import shrink
from servers import end_on_sigterm
from tqdm import tqdm

if TYPE_CHECKING:  # it imports torch, which who asks for --help need not wait for
    from nemesis.night import Builds, Ground, Run

# How much longer than until its first violation a run lasts that is to show it again.
_LONGER = 2.0
_SHORTEST_S = 20.0

_LEFT = _SCHEDULE, _HISTORY, _SHORTEST = "schedule.jsonl", "history.json", "shortest.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the nemesis; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 nothing was wrong, 1 something was, 2 usage.",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of faults, items and load (default: %(default)s)")
    parser.add_argument("--schedule", type=Path, help="file of faults to repeat, as a failed run leaves one")
    parser.add_argument("--output", type=Path, help="directory of what is left (default: runs/chaos/seed-SEED)")
    parser.add_argument("--attempts", type=int, default=8, help="runs to shorten a failure (default: %(default)s)")
    parser.add_argument("--no-ppo", action="store_true", help="leave the PPO run out")
    parser.add_argument(
        "--engine", action="store_true", help="let a stand-in for vLLM sample PPO's rollouts, under faults of its own"
    )
    parser.add_argument("--serve", nargs="+", help="a build of plaudit-serve to test")
    parser.add_argument("--train", nargs="+", help="a build of plaudit-ppo to test")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error("--minutes: must be more than 0")
    if options.engine and options.no_ppo:
        parser.error("--engine: samples for the PPO run, which --no-ppo leaves out; give one of the two")
    try:
        given = None if options.schedule is None else from_json(options.schedule.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"--schedule {options.schedule}: {error}")
    if not options.engine and any((fault.target, fault.kind) in NEEDS_ENGINE for fault in given or ()):
        parser.error(f"--schedule {options.schedule}: there are faults of the engine in it; give --engine, too")
    output = options.output or Path("runs/chaos") / f"seed-{options.seed}"
    output.mkdir(parents=True, exist_ok=True)
    for name in _LEFT:
        (output / name).unlink(missing_ok=True)
    from nemesis.night import Builds, prepare

    given_builds = {"serve": options.serve, "train": options.train}
    builds, seconds = Builds(**{name: build for name, build in given_builds.items() if build}), 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="plaudit-chaos-") as folder:
        has = {"with_training": not options.no_ppo, "with_engine": options.engine}
        ground = prepare(Path(folder), options.seed, _say, **has)
        faults, skipped = _faults(Path(folder), options.seed, seconds, given, with_engine=options.engine)
        for line in skipped:
            _say(line)
        (output / _SCHEDULE).write_text(to_json(faults), encoding="utf-8")
        done = _run(ground, faults, seconds, builds)
        (output / _HISTORY).write_text(_to_json(done), encoding="utf-8")
        print(describe(done))
        if not done.violations:
            return 0
        for violation in done.violations[:20]:
            print(f"violation: {violation}")
        _shorten(ground, faults, done, builds, options.attempts, output / _SHORTEST)
    return 1


def _faults(
    folder: Path, seed: int, seconds: float, given: Sequence[Fault] | None, *, with_engine: bool
) -> tuple[Sequence[Fault], Sequence[str]]:
    """The schedule, without what cannot be done here, and a line for each of that."""
    with Disk(folder / "probe") as disk:
        missing = frozenset() if disk.can_be_full else NEEDS_ROOT
    skipped = [f"skipped: {target}: {kind} (a file system of its own needs root)" for target, kind in sorted(missing)]
    missing |= frozenset() if with_engine else NEEDS_ENGINE
    if given is None:
        return draw(seed, seconds, without=missing), skipped
    return [fault for fault in given if (fault.target, fault.kind) not in missing], skipped


def _run(ground: "Ground", faults: Sequence[Fault], seconds: float, builds: "Builds") -> "Run":
    """One run under a bar of the seconds, on a disk of its own."""
    from nemesis.night import run

    shutil.rmtree(ground.folder / "disk", ignore_errors=True)
    with (
        Disk(ground.folder / "disk") as disk,
        tqdm(total=round(seconds), desc="chaos", unit="s", file=sys.stderr) as bar,
    ):
        return run(
            ground,
            disk,
            faults,
            seconds,
            builds=builds,
            on_call=lambda call: bar.update(max(0, min(round(seconds), int(call.ended_s)) - bar.n)),
            on_broken=_say,
        )


def _shorten(
    ground: "Ground", faults: Sequence[Fault], failed: "Run", builds: "Builds", max_attempts: int, file: Path
) -> None:
    """Look for the shortest schedule that still fails; print and keep it."""
    before = [fault for fault in faults if fault.at_s <= failed.lasted_s]

    def fails(left: Sequence[Fault]) -> bool:
        _say(f"again, with {len(left)} of {len(before)} faults")
        return bool(_run(ground, left, max(_SHORTEST_S, _LONGER * failed.lasted_s), builds).violations)

    shortest, attempts = shrink(before, fails, max_attempts)
    file.write_text(to_json(shortest), encoding="utf-8")
    print(f"shortest schedule that still failed, of {attempts} runs: {len(shortest)} faults ({file})")
    for fault in shortest:
        print(f"  {fault}")


def describe(done: "Run") -> str:
    """A few lines of figures."""
    history = done.history
    faults = Counter(f"{fault.target.split()[0]}: {fault.what}" for fault in history.faults)
    outcomes = Counter(call.outcome for call in history.calls)
    statuses = Counter(got.status for call in history.calls for got in call.results or ())
    grown = {name: history.after[name].resident_bytes - base.resident_bytes for name, base in history.before.items()}
    return "\n".join(
        [
            f"lasted {done.lasted_s:.0f} s; {len(history.faults)} faults: {_list(faults)}",
            f"requests that felt a fault of a link: {_list(Counter(done.felt))}",
            f"calls: {_list(outcomes)}; {history.num_sent} requests sent",
            f"sequences with a result: {history.num_scored} ({_list(statuses)})",
            f"restarts of replicas and engine: {done.restarts}; PPO runs: {_list(history.training)}",
            "counted by replicas since their last start, under faults: "
            f"{sum(each.requests for each in history.answered)} requests; arrived at the load: "
            f"{sum(each.requests_received for each in history.answered)}",
            "memory since the start: " + ", ".join(f"{name} {size / 1e6:+.0f} MB" for name, size in grown.items()),
            f"violations: {len(done.violations)}",
        ]
    )


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _to_json(done: "Run") -> str:
    history = done.history
    calls = [asdict(call) | {"results": None} for call in history.calls if call.outcome != "scores"]
    content = {
        "violations": list(done.violations),
        "faults": [asdict(each) for each in history.faults],
        "seen": [asdict(each) for each in history.seen],
        "calls_without_scores": calls,
        "before": {name: asdict(each) for name, each in history.before.items()},
        "after": {name: asdict(each) for name, each in history.after.items()},
        "answered": [asdict(each) for each in history.answered],
        "counted": [asdict(each) for each in history.counted],
    }
    return json.dumps(content, indent=1) + "\n"


def _say(line: str) -> None:
    tqdm.write(f"chaos: {line}", file=sys.stderr)


if __name__ == "__main__":
    end_on_sigterm()
    try:
        sys.exit(main())
    except RuntimeError as failure:  # a process did not start, before any fault
        _say(str(failure))
        sys.exit(1)
