"""`make chaos` catches builds that are broken on purpose, and says what it is for."""

import subprocess
import sys
from pathlib import Path

import pytest
from chaos import main
from nemesis.schedule import Fault, to_json

ROOT = Path(__file__).parents[2]
CHAOS = ROOT / "loadtests" / "chaos.py"
BROKEN = Path(__file__).with_name("broken_builds.py")


def chaos(*arguments):
    command = [sys.executable, str(CHAOS), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500)


def test_help_says_what_is_done_and_what_the_exit_codes_mean():
    done = chaos("--help")
    assert done.returncode == 0
    assert "three replicas" in done.stdout
    assert "0 nothing was wrong, 1 something was, 2 usage" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes: must be more than 0"),
        (["--schedule", "/nowhere"], "--schedule /nowhere: "),
        (["--engine", "--no-ppo"], "--engine: samples for the PPO run, which --no-ppo leaves out"),
    ],
)
def test_arguments_that_are_wrong_end_it_with_one_line(arguments, said):
    done = chaos(*arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_a_schedule_with_faults_of_an_engine_needs_one(tmp_path, capsys):
    (tmp_path / "faults").write_text(to_json([Fault(1.0, "engine", "kill", 0.0)]))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--schedule", str(tmp_path / "faults")])
    assert "faults: there are faults of the engine in it; give --engine, too" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("results-one-off", "without faults"),
        ("answers-one-off", "the results are not in the order of the request"),
        ("cache-without-type-ids", "(safe)"),
    ],
)
def test_a_broken_service_is_caught_and_the_schedule_that_shows_it_is_shortened(tmp_path, mistake, said):
    done = chaos(
        "--minutes", 5, "--seed", 1, "--no-ppo", "--attempts", 2, "--output", tmp_path / "out",
        "--serve", sys.executable, BROKEN, mistake,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "violation: " in done.stdout
    assert said in done.stdout
    assert "shortest schedule that still failed, of 1 runs: 0 faults" in done.stdout
    assert (tmp_path / "out" / "shortest.jsonl").read_text() == ""


@pytest.mark.slow
def test_a_checkpoint_that_is_written_in_place_is_caught(tmp_path):
    done = chaos(
        "--minutes", 5, "--seed", 1, "--attempts", 0, "--output", tmp_path / "out",
        "--train", sys.executable, BROKEN, "checkpoint-in-place",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "violation: at " in done.stdout
    assert "PPO run-" in done.stdout


@pytest.mark.slow
def test_rollouts_of_an_engine_that_depend_on_the_process_are_caught(tmp_path):
    done = chaos(
        "--minutes", 5, "--seed", 1, "--engine", "--attempts", 0, "--output", tmp_path / "out",
        "--train", sys.executable, BROKEN, "engine-seeds-of-the-process",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "differs from that of the undisturbed run" in done.stdout
