"""The three studies: from samples and runs to what each of them shows. Trains nothing."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from plaudit_ppo.demo.output import read_jsonl
from plaudit_ppo.studies.best_of_n import best_of_n_weights, kl_bound, kl_correction
from plaudit_ppo.studies.curves import Evaluation, at_kl, common_levels, mean_and_std
from plaudit_ppo.studies.figures import against_distance, against_iterations
from plaudit_ppo.studies.results import Result
from plaudit_ppo.studies.runs import Line, read_lines
from plaudit_ppo.studies.sampling import NUM_COMPLETIONS, samples_path
from plaudit_ppo.studies.settings import DEFAULT, LIKE_TRL, TRL, WITHOUT_KL, StudySettings, Variant, run_directory

_NS = (1, 2, 4, 8, 16)
_LEVEL_NATS = 1.0


def study_best_of_n(settings: StudySettings) -> Result:
    """Gold reward of PPO against best-of-n by the RM from the SFT policy, at the KL of each."""
    best = {seed: [_best_of_n(settings, seed, n) for n in _NS] for seed in settings.seeds}
    curves = {seed: _curve(settings, DEFAULT, seed) for seed in settings.seeds}
    rows = []
    for index, n in enumerate(_NS):
        points = [best[seed][index] for seed in settings.seeds]
        equal = [[at_kl(curves[seed], kl_bound(n), name) for seed in settings.seeds] for name in ("gold", "score")]
        rows.append([f"best of {n}", f"{kl_bound(n):.2f}", *_cells(points, "kl", "gold", "score"), *_spread(*equal)])
    ends = [curves[seed][-1] for seed in settings.seeds]
    rows.append(["PPO, its end", "", *_cells(ends, "kl", "gold", "score"), "", ""])
    return Result(
        name="best-of-n",
        title="PPO against best-of-n from the SFT policy",
        method=f"{_of(settings)}. Best-of-n by the RM's score, expected over all n of {NUM_COMPLETIONS} completions of "
        "each held-out prompt. PPO at a KL: between the evaluations along its training, on the same prompts.",
        header=["", "KL bound", "KL", "gold", "RM score", "PPO's gold at that bound", "PPO's RM score there"],
        rows=rows,
        figures=[
            (
                "Gold reward and distance",
                against_distance(
                    {"best of 1 to 16": list(best.values()), "PPO": list(curves.values())}, "gold", "gold reward"
                ),
                "One line per seed.",
            ),
            (
                "RM score and distance",
                against_distance(
                    {"best of 1 to 16": list(best.values()), "PPO": list(curves.values())}, "score", "RM score"
                ),
                "What both maximize.",
            ),
        ],
        records=[
            *({"seed": seed, "way": f"best of {n}", **best[seed][i]} for seed in best for i, n in enumerate(_NS)),
            *_records(settings, DEFAULT),
        ],
    )


def _best_of_n(settings: StudySettings, seed: int, n: int) -> Evaluation:
    """Means over the prompts, under best-of-n."""
    rows = read_jsonl(samples_path(settings, seed))
    prompts = []
    for _, group in groupby(rows, key=lambda row: row["prompt"]):
        samples = list(group)
        scores = [row["score"] for row in samples]
        weights = best_of_n_weights(scores, n)
        point = {
            name: sum(weight * row[name] for weight, row in zip(weights, samples, strict=True))
            for name in ("gold", "score", "finished")
        }
        correction = kl_correction(scores, [row["logprob"] for row in samples], n)
        prompts.append({**point, "kl": kl_bound(n) + correction})
    return {name: statistics.fmean(point[name] for point in prompts) for name in prompts[0]}


def study_beta(settings: StudySettings) -> Result:
    """The KL penalty left out against the default: does gold fall while the score rises?"""
    rows, curves = [], {}
    for variant in (DEFAULT, WITHOUT_KL):
        name = f"beta {settings.demo(0).kl_coef if variant.kl_coef is None else variant.kl_coef:g}"
        curves[name] = [_curve(settings, variant, seed) for seed in settings.seeds]
        for moment, pick in _MOMENTS.items():
            points = [pick(curve) for curve in curves[name]]
            rows.append(
                [f"{name}, {moment}", *_cells(points, "iteration", "kl", "gold", "score", "tokens", "finished")]
            )
        changes = [{key: curve[-1][key] - _best(curve)[key] for key in curve[-1]} for curve in curves[name]]
        rows.append([f"{name}, end - best", *_cells(changes, "iteration", "kl", "gold", "score", "tokens", "finished")])
    return Result(
        name="beta",
        title="PPO without the KL penalty",
        method=f"{_of(settings)}. Evaluations on held-out prompts along the training; best: where a run's gold reward "
        "is highest.",
        header=["", "iteration", "KL", "gold", "RM score", "tokens", "finished"],
        rows=rows,
        figures=[
            ("Gold reward", against_iterations(curves, "gold", "gold reward"), "One line per seed."),
            ("RM score", against_iterations(curves, "score", "RM score"), "What PPO maximizes."),
            ("Gold reward and distance", against_distance(curves, "gold", "gold reward"), "One line per seed."),
        ],
        records=[record for variant in (DEFAULT, WITHOUT_KL) for record in _records(settings, variant)],
    )


def _best(curve: Sequence[Evaluation]) -> Evaluation:
    return max(curve, key=lambda point: point["gold"])


_MOMENTS: Mapping[str, Callable[[Sequence[Evaluation]], Evaluation]] = {
    "start": lambda curve: curve[0],
    "best": _best,
    "end": lambda curve: curve[-1],
}


def study_trl(settings: StudySettings) -> Result:
    """PPO against that of TRL 1.11 at equal KL, and what an iteration of each takes."""
    variants = {"plaudit": LIKE_TRL, "TRL 1.11": TRL}
    curves = {name: [_curve(settings, each, seed) for seed in settings.seeds] for name, each in variants.items()}
    rows = []
    for kl in common_levels([curve for each in curves.values() for curve in each], _LEVEL_NATS):
        for metric, label in (("score", "RM score"), ("gold", "gold")):
            ours, theirs = ([at_kl(curve, kl, metric) for curve in each] for each in curves.values())
            rows.append(_compared(f"{label} at {kl:g} nats", ours, theirs))
    for metric, label in (("kl", "KL"), ("score", "RM score"), ("gold", "gold"), ("tokens", "tokens")):
        ours, theirs = ([curve[-1][metric] for curve in each] for each in curves.values())
        rows.append(_compared(f"{label} at the end", ours, theirs))
    for metric, label in (("wall_s", "wall s per iteration"), ("cpu_s", "CPU s per iteration")):
        ours, theirs = (
            [_median_time(read_lines(run_directory(settings, each, seed)), metric) for seed in settings.seeds]
            for each in variants.values()
        )
        rows.append(_compared(label, ours, theirs, ratio=True))
    return Result(
        name="trl",
        title="plaudit's PPO against TRL 1.11's",
        method=f"{_of(settings)}. Same SFT policy, critic's start, prompts, served RM and hyper-parameters; the two "
        "take turns after each iteration, in one time window. Times are medians over a run's iterations.",
        header=["", *variants, "plaudit - TRL, or ÷"],
        rows=rows,
        figures=[
            ("RM score and distance", against_distance(curves, "score", "RM score"), "One line per seed."),
            ("Gold reward and distance", against_distance(curves, "gold", "gold reward"), "One line per seed."),
            ("RM score", against_iterations(curves, "score", "RM score"), "One line per seed."),
        ],
        records=[record for variant in variants.values() for record in _records(settings, variant)],
    )


def _compared(
    label: str, ours: Sequence[float | None], theirs: Sequence[float | None], *, ratio: bool = False
) -> list[str]:
    both = [None if a is None or b is None else a / b if ratio else a - b for a, b in zip(ours, theirs, strict=True)]
    return [label, *_spread(ours, theirs), ("÷ " if ratio else "") + mean_and_std(both)]


def _median_time(lines: Sequence[Line], name: str) -> float:
    """Seconds of an iteration; the first, which warms up, is left out where there are others."""
    times = [line[name] for line in lines if line["iteration"] > 0]
    return statistics.median(times[1:] or times)


def _curve(settings: StudySettings, variant: Variant, seed: int) -> list[Evaluation]:
    lines = read_lines(run_directory(settings, variant, seed))
    return [{"iteration": line["iteration"], **line["evaluation"]} for line in lines if line["evaluation"]]


def _records(settings: StudySettings, variant: Variant) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "way": variant.name, **line}
        for seed in settings.seeds
        for line in read_lines(run_directory(settings, variant, seed))
    ]


def _cells(points: Sequence[Evaluation], *names: str) -> list[str]:
    return _spread(*([point[name] for point in points] for name in names))


def _spread(*columns: Sequence[float | None]) -> list[str]:
    return [mean_and_std(column) for column in columns]


def _of(settings: StudySettings) -> str:
    return f"Mean ± standard deviation over seeds {', '.join(map(str, settings.seeds))}"
