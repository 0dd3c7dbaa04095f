import io
import threading

import pytest

from plaudit_export import progress


class Terminal(io.StringIO):
    """Tells when something was written for the third time."""

    def __init__(self):
        super().__init__()
        self.written = threading.Semaphore(0)

    def isatty(self):
        return True

    def write(self, text):
        self.written.release()
        return super().write(text)


def test_a_terminal_sees_the_time_that_a_step_takes_again_and_again(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.elapsed("tracing", interval_s=0.001):
        for _ in range(6):
            assert terminal.written.acquire(timeout=30)
    assert terminal.getvalue().count("tracing: 00:0") > 1


def test_a_file_sees_nothing(capsys):
    with progress.elapsed("tracing", interval_s=0.001):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_step_that_fails_ends_its_line(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(ZeroDivisionError), progress.elapsed("tracing"):
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if "refresh" in thread.name]
