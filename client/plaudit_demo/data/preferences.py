"""Preference pairs: two completions per prompt, labelled by Bradley-Terry from the gold reward."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plaudit_demo.data.sampling import Completion


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, the first one preferred by a noisy judge.

    Attributes:
        prompt: what both complete.
        chosen: the preferred completion.
        rejected: the other one.
        chosen_gold: gold reward of the chosen one; may be the lower one, the judge is noisy.
        rejected_gold: gold reward of the rejected one.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_gold: float
    rejected_gold: float


def draw_pairs(
    prompts: Sequence[str],
    first: Sequence[Completion],
    second: Sequence[Completion],
    gold: Callable[[str, str], float],
    *,
    seed: int,
) -> list[Pair]:
    """Label two completions per prompt.

    P(first preferred) = sigmoid(gold(first) - gold(second)). Bradley & Terry 1952, as in Gao et al. 2022
    (arXiv 2210.10760) section 2.1 with noise. Pairs in which a completion was cut at the length limit, or in which both
    are the same text, are left out.

    Args:
        prompts: one per pair.
        first: a completion of each prompt.
        second: another completion of each prompt.
        gold: the gold reward of a prompt and a completion.
        seed: of the judge's noise.

    Returns:
        The labelled pairs, at most one per prompt.
    """
    rng = random.Random(seed)
    pairs = []
    for prompt, a, b in zip(prompts, first, second, strict=True):
        noise = rng.random()
        if not (a.finished and b.finished) or a.text == b.text:
            continue
        gold_a, gold_b = gold(prompt, a.text), gold(prompt, b.text)
        if noise < sigmoid(gold_a - gold_b):
            pairs.append(Pair(prompt, a.text, b.text, gold_a, gold_b))
        else:
            pairs.append(Pair(prompt, b.text, a.text, gold_b, gold_a))
    return pairs


def best_accuracy(pairs: Sequence[Pair]) -> float:
    """The pair accuracy to expect of the gold reward itself: mean of sigmoid(|gold difference|)."""
    return sum(sigmoid(abs(pair.chosen_gold - pair.rejected_gold)) for pair in pairs) / len(pairs)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
