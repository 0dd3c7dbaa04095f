"""What makes a score of the weighted sum of a model's heads. Pure; the exporter's checks use it, too."""

import math
from typing import Any

import numpy as np

from plaudit_service.bundles.bundle import Link


def linked(total: Any, link: Link) -> Any:
    """The score of a weighted sum, a number or an array of them, in float64.

    `sigmoid` is 1 / (1 + exp(-total)): with two heads of weights -1 and 1 the softmax's probability of the second.
    """
    if link == "identity":
        return total
    if isinstance(total, np.ndarray):  # one by one: an array's exp may round otherwise than a number's
        return np.array([_sigmoid(value) for value in total.ravel().tolist()]).reshape(total.shape)
    return _sigmoid(float(total))


def _sigmoid(value: float) -> float:
    if not math.isfinite(value):
        return math.nan  # an overflow of the sum is no certainty
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
