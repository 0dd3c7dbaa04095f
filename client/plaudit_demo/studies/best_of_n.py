"""Best-of-n sampling: what it gains, and how far from the policy it goes. Pure arithmetic over scored completions.

Knows nothing of models.
"""

import math
from collections.abc import Sequence


def best_of_n_weights(scores: Sequence[float], n: int) -> list[float]:
    """The probability of each of N completions to be the best of n that are drawn from them without repetition.

    With ranks 1 to N by rising score: w = C(rank - 1, n - 1) / C(N, n). The weighted mean of anything is then its
    unbiased estimate under best-of-n, with less noise than one draw of n. Nakano et al. 2021, section 3.2,
    arXiv 2112.09332. Completions with equal scores share their probabilities.

    Args:
        scores: of N completions of one prompt.
        n: how many the best is chosen from; at most N.

    Returns:
        A weight per completion; together 1.

    Raises:
        ValueError: n is below 1 or above N.
    """
    N = len(scores)
    if not 1 <= n <= N:
        raise ValueError(f"n = {n}, limits 1 and {N}, the number of completions")
    below = [sum(other < score for other in scores) for score in scores]
    equal = [sum(other == score for other in scores) for score in scores]
    return [
        (math.comb(less + same, n) - math.comb(less, n)) / math.comb(N, n) / same
        for less, same in zip(below, equal, strict=True)
    ]


def kl_bound(n: int) -> float:
    """An upper bound on the KL of best-of-n from the policy, in nats: log n - (n - 1) / n.

    Hilton & Gao 2022, "Measuring Goodhart's law"; a bound by Beirami et al. 2024, arXiv 2401.01879. It is the KL itself
    where no completion has a probability worth mentioning.
    """
    return math.log(n) - (n - 1) / n


def kl_at_least(scores: Sequence[float], logprobs: Sequence[float], n: int) -> float:
    """A lower bound on that KL, in nats, by what the completions' own probabilities take off the upper one.

    Best-of-n gives a completion y of probability p the probability F^n - (F - p)^n, where F is the probability of a
    score of at most y's. So KL = E[log(n F^(n-1))] + E[log((F^n - (F - p)^n) / (n p F^(n-1)))], over best-of-n. The
    first term is at least `kl_bound`, because F counts y itself; the second, at most 0, is estimated here. F is
    estimated by ranks, and is never below p.

    Args:
        scores: of N completions of one prompt.
        logprobs: log-probability of each under the policy, in nats.
        n: how many the best is chosen from.
    """
    N, correction = len(scores), 0.0
    for score, logprob, weight in zip(scores, logprobs, best_of_n_weights(scores, n), strict=True):
        p = math.exp(logprob)
        share = p / max(p, sum(other <= score for other in scores) / N)  # p / F
        if weight and share > 1e-12:  # below, the quotient is 1 to the last digit
            correction += weight * math.log((1 - (1 - share) ** n) / (n * share))
    return kl_bound(n) + correction
