"""The studies: from samples and runs to what each of them shows. Trains nothing."""

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from plaudit_demo.output import read_jsonl
from plaudit_demo.studies.best_of_n import best_of_n_weights, kl_at_least, kl_bound
from plaudit_demo.studies.curves import Evaluation, best_gold, best_within, mean_and_std, mixed_at
from plaudit_demo.studies.figures import Curves, against_distance, against_iterations
from plaudit_demo.studies.results import Result
from plaudit_demo.studies.runs import Line, read_lines
from plaudit_demo.studies.sampling import NUM_COMPLETIONS, samples_path
from plaudit_demo.studies.settings import (
    BY_ENGINE,
    BY_ENGINE_AHEAD,
    BY_ENGINE_AHEAD_WIDE,
    DEFAULT,
    LIKE_TRL,
    PPO_BY_KL,
    TRL,
    TRL_SAME_DRAWS,
    WITHOUT_KL,
    StudySettings,
    Variant,
    run_directory,
)

_NS = range(1, NUM_COMPLETIONS + 1)
_SHOWN_NS = (1, 2, 4, 8, 16, 32)
_KL_BUDGETS = (1, 2, 4, 5, 6)


def study_best_of_n(settings: StudySettings) -> Result:
    """Gold reward of PPO, with the KL penalties at which it settles here and there, against best-of-n at that KL."""
    best = [[_best_of_n(settings, seed, n) for n in _NS] for seed in settings.seeds]
    ppo = {
        f"PPO, {_beta(settings, each)}": [_curve(settings, each, seed) for seed in settings.seeds] for each in PPO_BY_KL
    }
    rows = [
        [f"best of {n}", *_cells([points[n - 1] for points in best], "kl_at_least", *_REACHED), "", "", "", ""]
        for n in _SHOWN_NS
    ]
    for name, curves in ppo.items():
        ends = [curve[-1] for curve in curves]
        same_kl = [mixed_at(points, end["kl"]) for points, end in zip(best, ends, strict=True)]
        rows.append([f"{name}, at its end", "", *_cells(ends, *_REACHED), *_against_best_of_n(ends, same_kl)])
    return Result(
        name="best-of-n",
        title="PPO against best-of-n from the SFT policy",
        method=f"{_of(settings)}. Best-of-n by the RM's score, expected over all n of {NUM_COMPLETIONS} completions of "
        "each held-out prompt; its KL lies between the two columns. Best-of-n at the KL of PPO: a mixture of two "
        "neighbouring n with that KL. PPO is measured on the same prompts.",
        header=[
            *("", "KL at least", "KL (at most)", "gold", "RM score"),
            *("gold of best-of-n at that KL", "its RM score", "gold - its", "RM score - its"),
        ],
        rows=rows,
        figures=_distance_figures({f"best of {_NS[0]} to {_NS[-1]}": best, **ppo}),
        records=[
            *(
                {"seed": seed, "way": f"best of {n}", **point}
                for seed, points in zip(settings.seeds, best, strict=True)
                for n, point in zip(_NS, points, strict=True)
            ),
            *(record for variant in PPO_BY_KL for record in _records(settings, variant)),
        ],
    )


_REACHED = ("kl", "gold", "score")


def _against_best_of_n(ends: Sequence[Evaluation], same_kl: Sequence[Evaluation | None]) -> list[str]:
    """Best-of-n at the KL of PPO, and what PPO has more; empty where one of the runs lies beyond best-of-n."""
    theirs = [point for point in same_kl if point is not None]
    if len(theirs) < len(ends):
        return [""] * 4
    more = [
        {name: end[name] - point[name] for name in ("gold", "score")} for end, point in zip(ends, theirs, strict=True)
    ]
    return [*_cells(theirs, "gold", "score"), *_cells(more, "gold", "score")]


def _best_of_n(settings: StudySettings, seed: int, n: int) -> Evaluation:
    """Means over the prompts, under best-of-n; `kl` is the upper bound."""
    prompts = []
    for _, group in groupby(read_jsonl(samples_path(settings, seed)), key=lambda row: row["prompt"]):
        samples = list(group)
        scores = [row["score"] for row in samples]
        weights = best_of_n_weights(scores, n)
        means = {
            name: sum(weight * row[name] for weight, row in zip(weights, samples, strict=True))
            for name in ("gold", "score", "finished")
        }
        prompts.append({**means, "kl_at_least": kl_at_least(scores, [row["logprob"] for row in samples], n)})
    return {"kl": kl_bound(n), **{name: statistics.fmean(prompt[name] for prompt in prompts) for name in prompts[0]}}


def study_beta(settings: StudySettings) -> Result:
    """The KL penalty left out against the default: does gold fall while the score rises?"""
    columns = ("iteration", "kl", "gold", "score", "tokens", "finished")
    rows, curves = [], {}
    for variant in (DEFAULT, WITHOUT_KL):
        name = _beta(settings, variant)
        runs = [_curve(settings, variant, seed) for seed in settings.seeds]
        best, ends = [best_gold(curve) for curve in runs], [curve[-1] for curve in runs]
        changes = [{key: end[key] - top[key] for key in columns} for top, end in zip(best, ends, strict=True)]
        for moment, points in (
            ("start", [curve[0] for curve in runs]),
            ("highest gold", best),
            ("end", ends),
            ("end - highest gold", changes),
        ):
            rows.append([f"{name}, {moment}", *_cells(points, *columns)])
        curves[name] = runs
    return Result(
        name="beta",
        title="PPO without the KL penalty",
        method=f"{_of(settings)}. Evaluations on held-out prompts along the training.",
        header=["", "iteration", "KL", "gold", "RM score", "tokens", "finished"],
        rows=rows,
        figures=_iteration_figures(curves),
        records=[record for variant in (DEFAULT, WITHOUT_KL) for record in _records(settings, variant)],
    )


def study_trl(settings: StudySettings) -> Result:
    """PPO against that of TRL 1.11 at equal KL, and what an iteration of each takes."""
    variants = {"plaudit": LIKE_TRL, "TRL 1.11": TRL}
    curves = {name: [_curve(settings, each, seed) for seed in settings.seeds] for name, each in variants.items()}
    rows = []
    for kl in _KL_BUDGETS:
        ours, theirs = ([best_within(curve, kl) for curve in each] for each in curves.values())
        rows += [_compared(f"{label} within {kl} nats", ours, theirs, name) for name, label in _MEASURES.items()]
    ours, theirs = ([curve[-1] for curve in each] for each in curves.values())
    at_the_end = {"kl": "KL", **_MEASURES, "tokens": "tokens"}
    rows += [_compared(f"{label} at the end", ours, theirs, name) for name, label in at_the_end.items()]
    for name, label in (("wall_s", "wall s per iteration"), ("cpu_s", "CPU s per iteration")):
        a, b = ([_median(_lines(settings, each, seed), name) for seed in settings.seeds] for each in variants.values())
        ratios = [_median_ratio(settings, seed, name) for seed in settings.seeds]
        rows.append([label, *_spread(a, b), f"÷ {mean_and_std(ratios)}"])
    return Result(
        name="trl",
        title="PPO against that of TRL 1.11",
        method=f"{_of(settings)}. Same SFT policy, critic's start, prompts, served RM and hyper-parameters; the two "
        "take turns after each iteration, in one time window. Within a KL: of the evaluations along a training whose "
        "KL is at most that, the one of the highest RM score. Times are medians over a run's iterations, their ratio "
        "the median over pairs of iterations.",
        header=["", *variants, "difference, or ÷"],
        rows=rows,
        figures=[*_distance_figures(curves), *_iteration_figures(curves)],
        records=[record for variant in variants.values() for record in _records(settings, variant)],
    )


def study_draws(settings: StudySettings) -> Result:
    """How high the KL rises on the way, and whether that is the trainer or its random draws."""
    variants = {"plaudit": LIKE_TRL, "TRL 1.11, same draws": TRL_SAME_DRAWS, "TRL 1.11, its own": TRL}
    curves = {
        name: [_rollout_curve(settings, each, seed) for seed in settings.seeds] for name, each in variants.items()
    }
    tops = {name: [max(curve, key=lambda point: point["kl"]) for curve in each] for name, each in curves.items()}
    rows = [
        [f"seed {seed}", *(f"{points[index]['kl']:z.2f} ({points[index]['iteration']})" for points in tops.values())]
        for index, seed in enumerate(settings.seeds)
    ]
    rows.append(["all", *(cell for points in tops.values() for cell in _cells(points, "kl"))])
    return Result(
        name="draws",
        title="The random draws of PPO",
        method=f"{_of(settings)}. Highest KL among the iterations, of their rollouts, in nats, and the iteration. With "
        "the same draws, TRL takes prompts, completions and minibatches from plaudit's random generators.",
        header=["", *variants],
        rows=rows,
        figures=[("KL", against_iterations(curves, "kl", "KL, nats per completion"), "Of each iteration's rollouts.")],
        records=[record for variant in variants.values() for record in _records(settings, variant)],
    )


def study_engine(settings: StudySettings) -> Result:
    """Rollouts by a vLLM server in bfloat16, in turn and one step ahead, against the local sampler's."""
    variants = {
        "local sampler": DEFAULT,
        "engine": BY_ENGINE,
        "engine, one step ahead": BY_ENGINE_AHEAD,
        "engine, one step ahead, clip 0.4": BY_ENGINE_AHEAD_WIDE,
    }
    curves = {name: [_curve(settings, each, seed) for seed in settings.seeds] for name, each in variants.items()}
    local = curves["local sampler"]
    rows = []
    for name, variant in variants.items():
        ends = [curve[-1] for curve in curves[name]]
        at_the_end = [end["gold"] - curve[-1]["gold"] for end, curve in zip(ends, local, strict=True)]
        within = [end["gold"] - best_within(curve, end["kl"])["gold"] for end, curve in zip(ends, local, strict=True)]
        lines = [_lines(settings, variant, seed) for seed in settings.seeds]
        walls = [_median(each, "wall_s") for each in lines]
        parts = [[_median([line["metrics"] for line in each], f"time/{part}") for each in lines] for part in _PARTS]
        off = [max(float(line["metrics"]["val/sampling_log_ratio_max"]) for line in each) for each in lines]
        rewards = [*_cells(ends, "gold"), *_spread(at_the_end, within), *_cells(ends, "score", "kl")]
        rows.append([name, *rewards, *_spread(walls, *parts, off)])
    return Result(
        name="engine",
        title="Rollouts by a vLLM server in bfloat16",
        method=f"{_of(settings)}, {settings.iterations} iterations, at their end. The trainer computes in float32, the "
        'server in bfloat16, each on one thread, with sampling_correction = "token_truncate"; ahead: max_staleness = '
        "1. Local within that KL: of the local sampler's evaluations whose KL is at most that of the run at its end, "
        "the one of the highest RM score. Times are medians over a run's iterations, in seconds; waiting is the part "
        "of the generation for which training stood still. Logprobs are off by: the largest difference in a run "
        "between a token's logprobs of sampler and training forward, in nats.",
        header=[
            "",
            "gold",
            "gold - local",
            "gold - local within that KL",
            "RM score",
            "KL",
            "wall s per iteration",
            *_PARTS.values(),
            "logprobs off by",
        ],
        rows=rows,
        figures=_iteration_figures(curves),
        records=[record for variant in variants.values() for record in _records(settings, variant)],
    )


_PARTS = {"publish_s": "publishing", "generate_s": "generating", "generate_wait_s": "waiting", "update_s": "updating"}


def _rollout_curve(settings: StudySettings, variant: Variant, seed: int) -> list[Evaluation]:
    """The trainer's own figure of each iteration."""
    _, *lines = read_lines(run_directory(settings, variant, seed))
    return [{"iteration": line["iteration"], "kl": line["metrics"]["objective/kl"]} for line in lines]


_MEASURES = {"score": "RM score", "gold": "gold"}


def _beta(settings: StudySettings, variant: Variant) -> str:
    return f"beta {settings.sizes.kl_coef if variant.kl_coef is None else variant.kl_coef:g}"


def _compared(label: str, ours: Sequence[Evaluation], theirs: Sequence[Evaluation], name: str) -> list[str]:
    a, b = ([point[name] for point in points] for points in (ours, theirs))
    return [label, *_spread(a, b, [x - y for x, y in zip(a, b, strict=True)])]


def _median(lines: Sequence[Line], name: str) -> float:
    return statistics.median(float(line[name]) for line in lines)


def _median_ratio(settings: StudySettings, seed: int, name: str) -> float:
    pairs = zip(*(_lines(settings, variant, seed) for variant in (LIKE_TRL, TRL)), strict=True)
    return statistics.median(float(ours[name] / theirs[name]) for ours, theirs in pairs)


def _lines(settings: StudySettings, variant: Variant, seed: int) -> list[Line]:
    """The lines of the iterations; the first one, which warms up, is left out where there are others."""
    _, *lines = read_lines(run_directory(settings, variant, seed))
    return lines[1:] or lines


def _curve(settings: StudySettings, variant: Variant, seed: int) -> list[Evaluation]:
    lines = read_lines(run_directory(settings, variant, seed))
    return [{"iteration": line["iteration"], **line["evaluation"]} for line in lines if line["evaluation"]]


def _records(settings: StudySettings, variant: Variant) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "way": variant.name, **line}
        for seed in settings.seeds
        for line in read_lines(run_directory(settings, variant, seed))
    ]


def _distance_figures(curves: Curves) -> list[tuple[str, Markup, str]]:
    return [
        ("Gold reward and distance", against_distance(curves, "gold", "gold reward"), "One line per seed."),
        ("RM score and distance", against_distance(curves, "score", "RM score"), "What is maximized."),
    ]


def _iteration_figures(curves: Curves) -> list[tuple[str, Markup, str]]:
    return [
        ("Gold reward", against_iterations(curves, "gold", "gold reward"), "One line per seed."),
        ("RM score", against_iterations(curves, "score", "RM score"), "What PPO maximizes."),
        ("KL", against_iterations(curves, "kl", "KL, nats per completion"), "From the SFT policy."),
    ]


def _cells(points: Sequence[Evaluation], *names: str) -> list[str]:
    return _spread(*([point[name] for point in points] for name in names))


def _spread(*columns: Sequence[float]) -> list[str]:
    return [mean_and_std(column) for column in columns]


def _of(settings: StudySettings) -> str:
    seeds = ", ".join(map(str, settings.seeds))
    ground = "" if settings.ground_seed is None else f" on the ground of seed {settings.ground_seed}"
    return (f"Mean ± standard deviation over seeds {seeds}" if len(settings.seeds) > 1 else f"Seed {seeds}") + ground
