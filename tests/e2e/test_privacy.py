"""No dependency tells its makers anything: nothing is left in the home directory, and no host is looked up."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

# Gives a score, and at its end, when every thread has ended, what Python's sockets were asked for.
IN_PROCESS = """
import atexit, sys
asked = []
atexit.register(lambda: print(asked))
sys.addaudithook(lambda event, about: event in ("socket.getaddrinfo", "socket.connect") and asked.append(str(about)))
from plaudit_service import Scorer
(result,) = Scorer(sys.argv[1], runtime=sys.argv[2]).score([{"text": "good"}])
print(result.score)
"""

# A graph in ONNX Runtime until stdin ends, by itself and by us.
BY_ITSELF = "import sys, onnxruntime as ort; s = ort.InferenceSession(sys.argv[1]); sys.stdin.read()"
BY_US = "import sys, plaudit_service.engine.onnx_runtime as r; s = r.open_session(sys.argv[1]); sys.stdin.read()"


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    path.mkdir()
    return path


def environment(home):
    """This process's with another home, without what turns telemetry off or moves its files."""
    kept = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and name != "CI"}
    return {name: value for name, value in kept.items() if not name.startswith("XDG_")} | {"HOME": str(home)}


def left_in(home):
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_service_leaves_nothing_in_the_home_directory(tiny_bundle, home, runtime):
    command = [BIN / "plaudit-serve", tiny_bundle(), "--port", "0", "--runtime", runtime]
    lines = []
    with subprocess.Popen(command, env=environment(home), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            lines.append(line)
            if '"ready"' in line:
                process.terminate()
    assert process.returncode == 0
    assert all(line.startswith("{") for line in lines), lines
    assert left_in(home) == []


def test_verifying_a_bundle_leaves_nothing_in_the_home_directory(tiny_bundle, home):
    command = [BIN / "plaudit-export", "verify", tiny_bundle()]
    assert subprocess.run(command, env=environment(home), stdout=subprocess.DEVNULL).returncode == 0
    assert left_in(home) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_scoring_in_process_asks_no_host_and_leaves_nothing(tiny_bundle, home, runtime):
    command = [sys.executable, "-c", IN_PROCESS, tiny_bundle(), runtime]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n[]\n", "")
    assert left_in(home) == []


@pytest.mark.parametrize("package", ["plaudit_service", "plaudit_export", "plaudit_ppo", "plaudit_demo"])
def test_huggingface_hub_reports_nothing_for_whoever_imports_a_part_of_ours(home, package):
    script = f"import {package}; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, env=environment(home), stdout=subprocess.PIPE, text=True).stdout == "True\n"


@contextmanager
def looked_up(script, graph, home):
    """A process whose talk with other hosts can be read, line by line; for at most 5 minutes."""
    home.mkdir()
    command = ["timeout", "300", "strace", "-f", "-qq", "-s", "200", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
    command += [sys.executable, "-c", script, graph]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(home), text=True, **pipes) as process:
        yield process


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_onnx_runtime_looks_no_host_up_while_by_itself_it_does(tiny_bundle, tmp_path):
    graph = tiny_bundle() / "model.onnx"
    with looked_up(BY_US, graph, tmp_path / "us") as ours, looked_up(BY_ITSELF, graph, tmp_path / "itself") as control:
        if not any("events" in line for line in control.stderr):  # the collector's host
            pytest.skip("this version of onnxruntime asks nobody in 5 minutes")
        control.communicate("")
        assert ours.communicate("")[1] == ""
