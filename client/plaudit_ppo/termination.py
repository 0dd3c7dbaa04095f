"""How a process of a run ends: by SIGTERM where nothing is lost, and at once when all is done."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn


def leave(exit_code: int) -> NoReturn:
    """Ends this process without the end of the interpreter; call it last.

    Threads in PyTorch's code may still run: of the process group, which PyTorch keeps in caches (of sharded tensors)
    and in defaults of functions, or of a computation that Ctrl-C cut short. Such a thread may ask for Python's lock,
    and where the interpreter is no more, that aborts a process that went well.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(exit_code)


class Terminated(BaseException):
    """SIGTERM has ended the run; the message says where it can go on."""


class Termination:
    """The wish that the run ends, and where it may be granted: at once, but for what runs inside `deferred`."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def listen(self) -> "Termination":
        """From now on SIGTERM is such a wish; for the main thread of a command."""
        signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut short what the first began
            raise Terminated

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; who opens this looks at it."""
        with self._switched(deferred=True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside `deferred`, a part that may be left in the middle.

        Raises:
            Terminated: a signal comes, or has come.
        """
        with self._switched(deferred=False):
            if self.requested:
                raise Terminated
            yield

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Inside `at_once`, a part that must not be left in the middle.

        Raises:
            Terminated: at its end, where a signal has come; not inside `deferred` alone.
        """
        with self.deferred():
            yield
        if self.requested and not self._deferred:
            raise Terminated

    @contextmanager
    def _switched(self, *, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before
