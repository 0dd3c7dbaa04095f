"""How far a reduced precision moves scores and rankings from float32. Pure; knows nothing of models."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Scores of a reduced precision held against those of float32 on the same texts.

    Attributes:
        num_texts: texts compared.
        held_out: none of them was calibrated on.
        max_abs_diff: largest |reduced - float32|.
        mean_abs_diff: mean |reduced - float32|.
        score_std: standard deviation of the float32 scores, to read the differences by.
        spearman: rank correlation.
        kendall: tau-b.
        pair_agreement: share of the text pairs ranked as float32 ranks them.
        size_bytes: of the graph and its weights.
        size_ratio: by float32's size.
        speed_ratio: sequences per second by float32's, on ONNX Runtime CPU here; None where not both ran there.
        left_in_float: products of activations and weights that were kept in float32, of all of them.
    """

    num_texts: int
    held_out: bool
    max_abs_diff: float
    mean_abs_diff: float
    score_std: float
    spearman: float
    kendall: float
    pair_agreement: float
    size_bytes: int
    size_ratio: float
    speed_ratio: float | None
    left_in_float: str

    def describe(self) -> str:
        """Two lines for a terminal."""
        speed = "" if self.speed_ratio is None else f", {self.speed_ratio:.2f} x the speed on this CPU"
        where = "held out from calibration" if self.held_out else "the ones that it was calibrated on"
        return (
            f"against float32 on {self.num_texts} texts, {where}: {self.pair_agreement:.2%} of the pairs ranked alike, "
            f"Spearman {self.spearman:.4f}, Kendall {self.kendall:.4f}\n"
            f"|difference| at most {self.max_abs_diff:.2g}, mean {self.mean_abs_diff:.2g} (scores' standard deviation "
            f"{self.score_std:.2g}); {self.size_ratio:.2f} x the size{speed}"
        )


def pair_agreement(reference: Scores, scores: Scores) -> float:
    """Share of all pairs of texts that `scores` rank as `reference` does; pairs that tie in `reference` do not count.

    A pair that ties in `scores` alone disagrees: a tie cannot rank.

    Args:
        reference: shape (N,).
        scores: shape (N,).
    """
    agreeing = counted = 0
    for at in range(len(reference) - 1):  # row by row: N² signs at once would not fit for many texts
        expected = np.sign(reference[at] - reference[at + 1 :])
        agreeing += int(((expected == np.sign(scores[at] - scores[at + 1 :])) & (expected != 0)).sum())
        counted += int((expected != 0).sum())
    return agreeing / counted if counted else 1.0


def kendall(first: Scores, second: Scores) -> float:
    """Kendall's tau-b: (concordant - discordant) / sqrt(pairs untied in first x pairs untied in second)."""
    balance = untied_first = untied_second = 0
    for at in range(len(first) - 1):
        signs = np.sign(first[at] - first[at + 1 :]), np.sign(second[at] - second[at + 1 :])
        balance += int((signs[0] * signs[1]).sum())
        untied_first += int(np.abs(signs[0]).sum())
        untied_second += int(np.abs(signs[1]).sum())
    if not untied_first or not untied_second:
        return 1.0 if untied_first == untied_second else 0.0
    return balance / math.sqrt(untied_first * untied_second)


def spearman(first: Scores, second: Scores) -> float:
    """Correlation of the ranks; texts that tie share their mean rank."""
    ranks = [_ranks(scores) - (len(scores) - 1) / 2 for scores in (first, second)]
    norms = [float(np.sqrt((rank**2).sum())) for rank in ranks]
    if not all(norms):
        return 1.0 if norms[0] == norms[1] else 0.0
    return float((ranks[0] * ranks[1]).sum() / (norms[0] * norms[1]))


def _ranks(scores: Scores) -> Scores:
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means: Scores = np.cumsum(counts) - (counts + 1) / 2
    return means[place]
