import errno
import os
import socket
import subprocess
import sys

import pytest

from plaudit_ppo.errors import ConfigError
from plaudit_ppo.runs.locks import locked

HOLD = "import sys; from pathlib import Path; from plaudit_ppo.runs.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"


def test_a_directory_is_one_processs_until_that_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "run"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        says = f"{tmp_path}/run is in use by another run (process {process.pid} on {socket.gethostname()}); wait until "
        with pytest.raises(ConfigError) as caught, locked(tmp_path / "run"):
            pass
        assert says in str(caught.value)
        process.kill()
    with locked(tmp_path / "run"):
        assert f"process {os.getpid()} on " in (tmp_path / "run" / "run.lock").read_text()


def test_a_lock_ends_with_its_block_however_that_ends(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path), pytest.raises(ConfigError, match="in use by another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_on_a_file_system_without_locks_a_run_is_warned_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", failing(errno.EOPNOTSUPP))
    with pytest.warns(UserWarning, match=r"run\.lock cannot be locked \(.* not supported\)"), locked(tmp_path):
        assert "process" in (tmp_path / "run.lock").read_text()


def test_another_failure_of_the_lock_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", failing(errno.EIO))
    with pytest.raises(OSError, match="error"), locked(tmp_path):
        pass


def failing(number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    return flock
