import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plaudit_demo.errors import DemoError
from plaudit_demo.processes import command, run_to_end, running, stop

SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def python(code):
    return [sys.executable, "-c", code]


def lives(pid):
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < end, "still waiting"
        time.sleep(0.02)
    return result


def test_a_command_that_fails_is_named_with_its_status_its_last_words_and_its_log(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(DemoError) as caught:
        run_to_end(python("import sys; print('a'); sys.exit('the disk\\nis full')"), log, on_poll=lambda: None)
    assert (
        str(caught.value) == f"{Path(sys.executable).name} ended with status 1: a the disk is full (whole log: {log})"
    )


def test_a_command_killed_by_a_signal_is_named_with_the_signal(tmp_path):
    with pytest.raises(DemoError, match="ended with signal SIGKILL: no output"):
        run_to_end(python("import os; os.kill(os.getpid(), 9)"), tmp_path / "log", on_poll=lambda: None)


def test_a_command_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(DemoError, match=r"plaudit-none is not installed; pip install 'plaudit\[demo,export\]'"):
        run_to_end([command("plaudit-none")], tmp_path / "log", on_poll=lambda: None)


def test_someone_is_told_while_a_command_runs(tmp_path):
    polls = []
    run_to_end(python("import time; time.sleep(0.7)"), tmp_path / "log", on_poll=lambda: polls.append(1))
    assert len(polls) >= 2


def test_a_process_does_not_outlive_its_block_however_that_ends(tmp_path):
    started = []

    def fail():
        with running(python(SLEEP), tmp_path / "log") as process:
            assert lives(process.pid)
            started.append(process)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert started[0].returncode == -signal.SIGTERM
    with running(python(SLEEP), tmp_path / "log") as process:
        pass
    assert not lives(process.pid)


def test_a_process_that_ignores_the_termination_is_killed(tmp_path):
    log = tmp_path / "log"
    with running(python(DEAF), log) as process:
        wait_for(log.read_text)
        stop(process, timeout_s=0.2)
        assert process.returncode == -signal.SIGKILL


def test_what_a_process_has_started_goes_with_it(tmp_path):
    log = tmp_path / "log"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {DEAF!r}]).pid, flush=True); {SLEEP}"
    with running(python(code), log):
        child = int(wait_for(lambda: "deaf" in log.read_text() and log.read_text()).split()[0])
        assert lives(child)
    wait_for(lambda: not lives(child))


def test_settings_of_the_users_other_services_are_not_inherited(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAUDIT_API_KEYS", "secret")
    monkeypatch.setenv("OTHER", "kept")
    log = tmp_path / "log"
    run_to_end(
        python("import os; print(os.environ.get('PLAUDIT_API_KEYS'), os.environ['OTHER'])"), log, on_poll=lambda: None
    )
    assert log.read_text().split() == ["None", "kept"]


def test_a_piped_process_is_talked_to_and_its_log_has_stderr_alone(tmp_path):
    echo = "import sys; print(input().upper()); print('warned', file=sys.stderr)"
    with running(python(echo), tmp_path / "log", piped=True) as process:
        assert process.communicate(b"hello\n", timeout=30)[0] == b"HELLO\n"
    assert (tmp_path / "log").read_text() == "warned\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_its_process_and_waits_for_that_even_when_interrupted_again(tmp_path, number):
    program = f"""
import sys, time
from pathlib import Path
from plaudit_client.command_line import interruptible
from plaudit_demo import processes
processes._TERMINATE_TIMEOUT_S = 1.0
with interruptible(), processes.running([sys.executable, "-c", {DEAF!r}], Path({str(tmp_path / "log")!r})) as process:
    while not Path({str(tmp_path / "log")!r}).read_text():
        time.sleep(0.02)
    print(process.pid, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen(python(program), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        child = int(demo.stdout.readline())
        assert lives(child)
        demo.send_signal(number)
        time.sleep(0.3)
        demo.send_signal(number)
        demo.wait(timeout=30)
    assert demo.returncode != 0
    assert not lives(child)


def test_a_command_of_this_environment_is_found_without_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert os.access(command("plaudit-serve"), os.X_OK)
