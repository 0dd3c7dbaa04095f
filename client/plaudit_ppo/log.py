"""The run's log file and its progress on the terminal."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

Metrics = Mapping[str, float | None]


class MetricsLog:
    """A JSONL file with one object per iteration; what is undefined is null, never NaN.

    Args:
        path: made anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, metrics: Metrics) -> None:
        """Appends a line, on the disk's way before this returns."""
        line = {
            name: None if value is not None and not math.isfinite(value) else value for name, value in metrics.items()
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Progress:
    """A progress bar on stderr, for `PPOTrainer.train(on_iteration=...)`; silent where stderr is no terminal.

    Args:
        iterations: how many there will be.
    """

    def __init__(self, iterations: int) -> None:
        self._bar = tqdm(total=iterations, unit="iteration", disable=None)

    def __call__(self, metrics: Metrics) -> None:
        """Shows one more iteration."""
        shown = {"score": "scoring/score_mean", "kl": "objective/kl", "masked": "scoring/masked_share"}
        values = {label: metrics.get(name) for label, name in shown.items()}
        self._bar.set_postfix({label: "-" if value is None else f"{value:.3f}" for label, value in values.items()})
        self._bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
