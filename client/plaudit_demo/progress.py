"""Progress on the terminal: a bar per stage, or a plain line now and then where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

_LINE_EVERY_S = 5.0
_BAR = "{desc} {percentage:3.0f}% |{bar:5}| {remaining}{postfix}"  # fits 80 columns with the longest note


class Progress:
    """Shows the stages of a run, numbered, and remembers how long each took.

    Attributes:
        seconds: of each finished stage, by its title.
    """

    def __init__(self, stream: TextIO, num_stages: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}
        self._stream = stream
        self._num_stages = num_stages
        self._clock = clock

    @contextmanager
    def stage(self, title: str, total: int = 1) -> Iterator["Stage"]:
        """Show a stage for as long as the block runs.

        Args:
            title: what is being done.
            total: how many steps the stage has.
        """
        stage = Stage(self._stream, f"{len(self.seconds) + 1}/{self._num_stages} {title}", total, self._clock)
        try:
            yield stage
        finally:
            self.seconds[title] = stage.close()


class Stage:
    """A stage that runs."""

    def __init__(self, stream: TextIO, label: str, total: int, clock: Callable[[], float]) -> None:
        self._stream, self._label, self._total, self._clock = stream, label, total, clock
        self._started = self._last_line = clock()
        self._done, self._note = 0, ""
        self._bar: tqdm[Any] | None = None
        if stream.isatty():
            self._bar = tqdm(total=total, desc=f"{label:<29}", bar_format=_BAR, file=stream, dynamic_ncols=True)
        else:
            self._print("started")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Show that some steps are done (0: that the stage still runs).

        Args:
            steps: done since the last call.
            note: the figures of the moment; stays until the next one.
        """
        self._done += steps
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(steps)
            if steps == 0:
                self._bar.refresh()
        elif self._clock() - self._last_line >= _LINE_EVERY_S:
            self._last_line = self._clock()
            so_far = f"{self._done}/{self._total}" if self._total > 1 else f"{self._last_line - self._started:.0f} s"
            self._print(so_far, self._note)

    def close(self) -> float:
        """End the display; returns the seconds that the stage took."""
        seconds = self._clock() - self._started
        if self._bar is not None:
            self._bar.close()
        else:
            outcome = "done" if self._done >= self._total else f"ended at {self._done}/{self._total}"
            self._print(f"{outcome} in {seconds:.1f} s", self._note)
        return seconds

    def _print(self, *parts: str) -> None:
        print(f"{self._label}:", *filter(None, parts), file=self._stream, flush=True)
