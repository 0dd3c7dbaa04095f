"""Milliseconds of calls by their tokens, and the constants of the queue that fit them."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from gpu_measuring import Figures, Setting, median_s, random_ids, sequence

# A batch is as large as it needs to be when it reaches this share of the best rate.
_NEARLY_BEST = 0.95


def measure_costs(part: str, setting: Setting, figures: Figures) -> None:
    """Milliseconds by tokens of one call, and what `Costs` would be by them, beside what it is."""
    from plaudit_service.serving.scorer import Scorer

    scorer = Scorer(setting.made_bundle(setting.measured, setting.precision), device=setting.device)
    costs = scorer.model.engine.costs
    figures.put(
        engine=scorer.identity.engine,
        call_tokens_today=costs.call_tokens,
        prefix_token_today=costs.prefix_token,
        batch_tokens_today=costs.batch_tokens,
    )
    calls = _time_calls(scorer, setting, figures)
    tokens, times = [call["tokens"] for call in calls], [call["ms"] / 1000 for call in calls]
    call_s, token_s = fit_calls(tokens, times)
    off = [abs(call_s + token_s * n - t) / t for n, t in zip(tokens, times, strict=True)]
    figures.put(
        call_ms=1000 * call_s,
        token_us=1e6 * token_s,
        call_tokens_fitted=call_s / token_s,
        largest_relative_error=max(off),
        batch_tokens_nearly_best=nearly_best(tokens, times),
    )
    behind = _time_prefixes(scorer, setting, figures)
    attended = [call["rows"] * call["prefix"] for call in behind]
    beyond = [(call["ms"] - call["ms_without"]) / 1000 for call in behind]
    figures.put(prefix_token_fitted=fit_prefix(attended, beyond, token_s))


def _time_calls(scorer: Any, setting: Setting, figures: Figures) -> list[dict[str, float]]:
    """Calls of ever more tokens."""
    engine, scoring, source = scorer.model.engine, scorer.bundle.scoring, random.Random(0)
    calls: list[dict[str, float]] = []
    for rows, length in call_shapes(min(512, scoring.max_tokens // 2), engine.costs.batch_tokens):
        batch = [sequence(random_ids(source, length, scoring.vocab_size)) for _ in range(rows)]
        seconds = median_s(lambda batch=batch: engine.run(batch), setting.seconds / 3)
        calls.append({"rows": rows, "tokens": rows * length, "ms": 1000 * seconds})
        figures.put(calls=calls)
    return calls


def _time_prefixes(scorer: Any, setting: Setting, figures: Figures) -> list[dict[str, float]]:
    """Rows behind ever longer prefixes, each beside as many of the same length without one."""
    engine, scoring, source = scorer.model.engine, scorer.bundle.scoring, random.Random(1)
    rows, length = 8, max(2, min(128, scoring.max_tokens // 8))

    def batch_behind(start: list[int]) -> list[Any]:
        return [sequence(start + random_ids(source, length, scoring.vocab_size)) for _ in range(rows)]

    behind: list[dict[str, float]] = []
    for num_prefix in sorted({scoring.max_tokens // share for share in (8, 4, 2)}):
        start = random_ids(source, num_prefix, scoring.vocab_size)
        prefix, batch, alone = engine.compute_prefix(np.array(start)), batch_behind(start), batch_behind([])
        with_s = median_s(lambda batch=batch, prefix=prefix: engine.run(batch, prefix), setting.seconds / 3)
        without_s = median_s(lambda batch=alone: engine.run(batch), setting.seconds / 3)
        shape = {"rows": rows, "tokens_of_a_row": length, "prefix": num_prefix}
        behind.append({**shape, "ms": 1000 * with_s, "ms_without": 1000 * without_s})
        figures.put(behind_a_prefix=behind)
    return behind


def call_shapes(length: int, most_tokens: int) -> list[tuple[int, int]]:
    """Rows and their length: single short rows, then 1, 2, 4, ... rows of the full length."""
    shapes = [(1, short) for short in (8, 32, 128) if short < length]
    rows = 1
    while rows == 1 or rows * length <= most_tokens:
        shapes.append((rows, length))
        rows *= 2
    return shapes


def fit_calls(tokens: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of a call and of a token: least squares of (call + token x tokens - seconds) / seconds, call >= 0."""
    n, t = np.array(tokens, dtype=float), np.array(seconds, dtype=float)
    call_s, token_s = np.linalg.lstsq(np.stack([1 / t, n / t], axis=1), np.ones(len(t)), rcond=None)[0]
    if call_s < 0:
        return 0.0, float((n / t).sum() / np.square(n / t).sum())
    if token_s <= 0:
        raise ValueError("more tokens took no more time; measure for longer (--seconds)")
    return float(call_s), float(token_s)


def fit_prefix(attended: Sequence[float], beyond_s: Sequence[float], token_s: float) -> float:
    """What attending to a token of a prefix costs, as a part of computing one; least squares through 0.

    Args:
        attended: Rows x tokens of the prefix, of each call.
        beyond_s: Seconds of each call beyond those of the same rows without a prefix.
        token_s: Seconds of a computed token.
    """
    x = token_s * np.array(attended, dtype=float)
    return max(0.0, float((x * np.array(beyond_s)).sum() / np.square(x).sum()))


def nearly_best(tokens: Sequence[float], seconds: Sequence[float]) -> float:
    """The fewest tokens of a call that compute nearly as many per second as any."""
    rates = [n / t for n, t in zip(tokens, seconds, strict=True)]
    return min(n for n, rate in zip(tokens, rates, strict=True) if rate >= _NEARLY_BEST * max(rates))
