"""The PPO runs that a study needs: those that are there are kept, the others are run."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from plaudit_demo.progress import Progress
from plaudit_demo.studies.ground import serving_ground
from plaudit_demo.studies.runs import is_done, run_in_turns
from plaudit_demo.studies.settings import StudySettings, Variant, run_directory, run_spec
from plaudit_demo.studies.spec import RunSpec


def ensure_runs(
    settings: StudySettings,
    variants: Sequence[Variant],
    seed: int,
    *,
    trl_python: Path,
    serve_policy: Callable[[Path], str],
    progress: Progress,
) -> None:
    """Train the variants of one seed, in turns where there are several; all of them unless all are there.

    Args:
        settings: of the study.
        variants: that take turns.
        seed: of the ground, and of what is random in training.
        trl_python: interpreter of TRL's environment.
        serve_policy: serves a policy by an engine, for the variants that are sampled by one; returns its address.
        progress: where it is told.

    Raises:
        DemoError: a run failed.
    """
    specs = {run_directory(settings, each, seed): run_spec(settings, each, seed, url="") for each in variants}
    if all(is_done(directory, spec) for directory, spec in specs.items()):
        return
    total = len(variants) * (1 + settings.iterations)
    title = f"seed {seed}: {', '.join(each.name for each in variants)}"
    pythons = {"plaudit": sys.executable, "trl": str(trl_python), "trl-same-draws": str(trl_python)}
    with serving_ground(settings.demo(seed), settings.ground(seed)) as (url, _), progress.stage(title, total) as stage:
        runs: dict[Path, RunSpec] = {}
        for each in variants:
            engine_url = serve_policy(run_spec(settings, each, seed, url).policy) if each.by_engine else ""
            runs[run_directory(settings, each, seed)] = run_spec(settings, each, seed, url, engine_url)
        run_in_turns(runs, pythons, stage)
