"""What is measured of a policy while it is trained, and when the turn is handed over."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO


class Recorder:
    """Measures a policy while it is trained, and hands over the turn after each iteration.

    Evaluations and the other's turns are outside of the times.

    Args:
        evaluate: measures the policy as it is now.
        every: iterations from one evaluation to the next; 0: none at all.
        last: the last iteration, which is evaluated too.
        turns: a line on it lets the next iteration begin.
        output: where the lines go.
    """

    def __init__(
        self, evaluate: Callable[[], Mapping[str, float]], *, every: int, last: int, turns: TextIO, output: TextIO
    ) -> None:
        self._evaluate, self._every, self._last = evaluate, every, last
        self._turns, self._output = turns, output
        self._iteration = 0

    def begin(self) -> None:
        """Call once before the first iteration."""
        self._await_turn()
        self._report({})

    def record(self, metrics: Mapping[str, float | None]) -> None:
        """Call at the end of each iteration with the trainer's own figures of it."""
        wall_s, cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self._iteration += 1
        self._report({"wall_s": wall_s, "cpu_s": cpu_s, "metrics": dict(metrics)})

    def _report(self, figures: dict[str, Any]) -> None:
        due = self._every > 0 and (self._iteration % self._every == 0 or self._iteration == self._last)
        evaluation = dict(self._evaluate()) if due else None
        line = {"iteration": self._iteration, **figures, "evaluation": evaluation}
        print(json.dumps(line, allow_nan=False), file=self._output, flush=True)
        if self._iteration < self._last:
            self._await_turn()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _await_turn(self) -> None:
        if not self._turns.readline():
            raise SystemExit(1)  # whoever started this has ended
