"""The progress of a run on the terminal."""

import logging
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

from tqdm import tqdm

from plaudit_ppo.runs.log import Metrics

_SHOWN = {
    "score": "scoring/score_mean",
    "eval": "eval/scores",
    "KL": "objective/kl",
}
_BAR = "{desc} {n_fmt}/{total_fmt} |{bar:5}| {elapsed}<{remaining}{postfix}"


class Progress:
    """A progress bar on stderr, for `PPOTrainer.train(on_iteration=...)`; silent where stderr is no terminal.

    Args:
        iterations: how many there will be.
    """

    def __init__(self, iterations: int) -> None:
        self._bar = tqdm(total=iterations, desc="PPO", bar_format=_BAR, dynamic_ncols=True, disable=None)

    def __call__(self, metrics: Metrics) -> None:
        """Shows the iteration that has ended, which is not the first one of a resumed run."""
        self._bar.set_postfix_str(_progress_line(metrics), refresh=False)
        self._bar.update(int(metrics.get("iteration") or 0) - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def show_warnings(command: str, *, is_first_process: bool) -> None:
    """Shows on stderr what the trainer warns of, above the progress bar.

    Args:
        command: begins each line.
        is_first_process: of a distributed run; the others show nothing.
    """
    logging.getLogger("plaudit_ppo").handlers = [_Lines(command) if is_first_process else logging.NullHandler()]


class _Lines(logging.Handler):
    def __init__(self, command: str) -> None:
        super().__init__(logging.WARNING)
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # nobody may be there to read it
            tqdm.write(f"{self._command}: {record.getMessage()}", file=sys.stderr)


def _progress_line(metrics: Metrics) -> str:
    """The few numbers that matter while a run goes on; a narrow terminal cuts off those that matter least.

    `masked` is the share of rollouts without a score, where there are any; `wait` is the share of the iteration in
    which training stood still for scores.
    """
    masked, length = metrics["scoring/masked_share"], metrics["tokens/completion_mean"]
    wait = (metrics["scoring/exposed_wait_s"] or 0) / (metrics["time/iteration_s"] or 1)
    return ", ".join(
        [
            *([f"masked {masked:.0%}"] if masked else []),
            *(f"{label} {_number(metrics[name])}" for label, name in _SHOWN.items() if name in metrics),
            f"wait {wait:.0%}",
            f"length {_number(length)}",
        ]
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
