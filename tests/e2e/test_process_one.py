"""SIGTERM to a command that is process 1, as in a container: the kernel delivers only what there is a handler for."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
AS_PROCESS_1 = ["unshare", "--pid", "--fork", "--kill-child"]


@pytest.fixture(autouse=True)
def needs_unshare():
    if subprocess.run([*AS_PROCESS_1, "true"], capture_output=True).returncode != 0:
        pytest.skip("no process here may become process 1 of a namespace of its own")


def started(stack, *command, **options):
    """A process, killed at the end; and the id of its only child."""
    process = stack.enter_context(subprocess.Popen([*AS_PROCESS_1, *command], **options))
    stack.callback(process.kill)
    return process


def terminate_child(process):
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        (["plaudit-serve", "org/bundle", "--port", "0"], 0),
        (["plaudit-fetch", "org/bundle", "DIRECTORY"], 130),
        (["plaudit-export", "checkpoint", "org/model", "DIRECTORY"], 130),
        (["plaudit-score", "--url", "URL"], 130),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_sigterm_ends_a_command_that_waits_for_another_host(command, exit_code, tmp_path):
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        silent.settimeout(120)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        places = {"DIRECTORY": str(tmp_path / "directory"), "URL": url}
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub")}
        name, *arguments = (places.get(argument, argument) for argument in command)
        process = started(stack, BIN / name, *arguments, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(b'"a text"\n')
        process.stdin.close()
        process.stdin = None
        stack.enter_context(silent.accept()[0])  # it has started, and asks
        terminate_child(process)
        _, said = process.communicate(timeout=120)
    assert process.returncode == exit_code
    assert b"Traceback" not in said
    assert not (tmp_path / "directory").exists()


def test_sigterm_ends_the_demo_while_it_starts(tmp_path):
    with ExitStack() as stack:
        process = started(stack, BIN / "plaudit-demo", "--output", tmp_path / "demo", stderr=subprocess.PIPE, text=True)
        assert process.stderr.readline().startswith("loading torch")
        terminate_child(process)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "plaudit-demo: interrupted\n")


def test_sigterm_while_the_golden_texts_are_scored_drains_the_service(causal_bundle):
    with ExitStack() as stack:
        process = started(stack, BIN / "plaudit-serve", causal_bundle, "--port", "0", stderr=subprocess.PIPE, text=True)
        while '"starting"' not in process.stderr.readline():
            assert process.poll() is None
        terminate_child(process)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert '"draining"' in said
