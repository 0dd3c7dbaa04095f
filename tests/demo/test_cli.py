import builtins
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plaudit_demo.cli import main
from plaudit_demo.errors import DemoError

# The sizes of a loop that takes seconds: too small to learn anything, but every part takes part.
SMALL = """
from plaudit_demo.cli import main
from plaudit_demo.settings import DemoSettings
import sys
small = DemoSettings(policy_hidden_size=32, policy_layers=1, reward_model_hidden_size=32, reward_model_layers=1,
    max_completion_tokens=48, corpus_examples=400, warm_up_steps=60, num_pairs=96, num_held_out_pairs=32,
    reward_model_epochs=1, ppo_iterations={iterations}, ppo_rollouts=16, ppo_micro_batch=8, num_held_out_prompts=24)
sys.exit(main(sys.argv[1:], small))
"""


@pytest.fixture(autouse=True)
def process_state(monkeypatch):
    """A command owns its process: what it sets there is put back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def small_demo(output, iterations=3):
    return [sys.executable, "-c", SMALL.format(iterations=iterations), "--output", str(output)]


def processes_of(path):
    """The command lines of the processes, other than this one, that name a path."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if any(str(path) in word for word in words) and int(entry.name) != os.getpid():
            found.append(words)
    return found


def test_the_whole_loop_leaves_every_artefact_and_a_summary(tmp_path):
    output = tmp_path / "demo"
    done = subprocess.run(small_demo(output), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"gold reward +-?\d.* -> ", done.stdout)
    assert f"page          {output}/index.html" in done.stdout
    assert [line[:3] for line in done.stderr.splitlines() if "started" in line] == [f"{n}/7" for n in range(1, 8)]
    assert "arning" not in done.stderr
    made = {entry.name for entry in output.iterdir()}
    assert made == {
        ".plaudit-demo", "bundle", "golden-items.jsonl", "held-out-pairs.jsonl", "held-out-prompts.jsonl", "index.html",
        "metrics.txt", "pairs.jsonl", "plaudit-export.log", "plaudit-serve.log", "policy-warmed-up", "ppo",
        "prompts.jsonl", "reward-model", "samples.jsonl", "summary.json",
    }  # fmt: skip
    assert {entry.name for entry in (output / "ppo").iterdir()} == {
        "checkpoints", "config.toml", "critic", "log.jsonl", "policy", "run.lock", "samples.jsonl", "summary.json",
    }  # fmt: skip
    summary = json.loads((output / "summary.json").read_text())
    assert summary["iterations"] == len((output / "ppo" / "log.jsonl").read_text().splitlines()) == 3
    assert summary["masked_share"] == 0
    assert summary["timing"]["stages"].keys() == {
        "warm up the policy", "sample preference pairs", "train the reward model", "export the bundle",
        "start the service", "train by PPO over HTTP", "evaluate before and after",
    }  # fmt: skip
    assert processes_of(output) == []


@pytest.mark.slow
def test_an_interrupted_demo_exits_130_and_leaves_no_process_behind(tmp_path):
    output = tmp_path / "demo"
    with subprocess.Popen(
        small_demo(output, iterations=100_000), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as demo:
        log = output / "ppo" / "log.jsonl"
        end = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") > 1):
            assert time.monotonic() < end
            assert demo.poll() is None, demo.stderr.read()
            time.sleep(0.1)
        assert any("plaudit-serve" in word for words in processes_of(output) for word in words)
        demo.send_signal(signal.SIGTERM)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert errors.splitlines()[-1] == "plaudit-demo: interrupted"
    assert "Traceback" not in errors
    assert processes_of(output) == []


@pytest.mark.slow
def test_two_demos_agree_in_every_figure_but_the_times_and_the_gold_reward_rises(tmp_path):
    summaries = []
    for name in ("one", "other"):
        subprocess.run([str(Path(sys.executable).parent / "plaudit-demo"), "--output", tmp_path / name], check=True)
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    one, other = ({**summary, "timing": None} for summary in summaries)
    assert one == other
    assert one["gold_reward_end"] > one["gold_reward_start"] + one["gold_reward_start_std"]
    assert one["kl_end"] < 10
    assert all(summary["timing"]["exposed_wait_share"] <= 0.05 for summary in summaries)


def fails_with(capsys, arguments):
    """The exit code and the one line on stderr."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("plaudit-demo: error: ")
    return code, lines[0]


@pytest.mark.parametrize(
    "arguments", [["--outptu", "x"], ["--kl-coef", "-1"], ["--kl-coef", "nan"], ["--seed", "x"], ["--seed", "-1"]]
)
def test_wrong_usage_is_one_line_and_exit_2(capsys, arguments):
    code, line = fails_with(capsys, arguments)
    assert code == 2
    assert "see plaudit-demo --help" in line


def test_a_directory_of_somebody_else_is_refused_with_exit_2(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, line = fails_with(capsys, ["--output", str(tmp_path)])
    assert code == 2
    assert "not an earlier demo" in line
    assert (tmp_path / "notes.txt").exists()


def test_a_missing_package_is_named_with_what_installs_it(capsys, tmp_path, monkeypatch):
    imported = builtins.__import__

    def without_trl(name, *args, **kwargs):
        if name == "plaudit_demo.run":
            raise ModuleNotFoundError("No module named 'trl'", name="trl")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_trl)
    assert main(["--output", str(tmp_path / "demo")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "plaudit-demo: error: trl is not installed; pip install 'plaudit[demo,export]'"


@pytest.mark.parametrize("error", [DemoError("the disk\nis slow"), OSError("the disk\nis slow")])
def test_a_failure_is_one_line_and_exit_1(capsys, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("plaudit_demo.run.run_demo", fail)
    assert main(["--output", str(tmp_path / "demo")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "plaudit-demo: error: the disk is slow"


def test_an_interruption_is_one_line_and_exit_130(capsys, tmp_path, monkeypatch):
    """What becomes of the processes is shown where they are run."""

    def interrupt(*_):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("plaudit_demo.run.run_demo", interrupt)
    assert main(["--output", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "plaudit-demo: interrupted"


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "(default: runs/demo)" in capsys.readouterr().out
