import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit_demo.studies.cli import main
from plaudit_demo.studies.runs import read_lines

TRL_PYTHON = Path(__file__).parents[3] / ".venv-trl-ppo" / "bin" / "python"

# The sizes of studies that take seconds: too small to learn anything, but every part takes part.
SMALL = """
from plaudit_demo.settings import DemoSettings
from plaudit_demo.studies.cli import main
import sys
small = DemoSettings(policy_hidden_size=32, policy_layers=1, reward_model_hidden_size=32, reward_model_layers=1,
    max_completion_tokens=48, corpus_examples=400, warm_up_steps=60, num_pairs=96, num_held_out_pairs=32,
    reward_model_epochs=1, ppo_rollouts=16, ppo_micro_batch=8, num_held_out_prompts=24)
sys.exit(main(sys.argv[1:], small))
"""


def study(name, output, *more):
    arguments = [name, "--output", str(output), "--seeds", "1", "2", "--iterations", "2", "--evaluate-every", "1"]
    return subprocess.run([sys.executable, "-c", SMALL, *arguments, *more], capture_output=True, text=True)


def test_a_missing_environment_of_trl_is_one_line_that_names_the_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["trl", "--output", str(tmp_path), "--trl-python", "/no/python"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("plaudit_demo.studies: error: --trl-python /no/python: there is no such file")
    assert "make study-trl" in error


@pytest.mark.parametrize("arguments", [["gamma"], ["beta", "--iterations", "0"], ["beta", "--seeds", "x"]])
def test_bad_usage_ends_with_status_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.slow
def test_studies_leave_table_lines_and_page_and_train_nothing_twice(tmp_path):
    first = study("best-of-n", tmp_path)
    assert first.returncode == 0, first.stderr
    assert re.search(r"^\| best of 4 \| 0\.\d\d ± 0\.\d\d \| 0\.64 ± 0\.00 \|", first.stdout, re.MULTILINE)
    assert {"best-of-n.html", "best-of-n.jsonl", "ground-1", "ground-2", "plaudit-1", "plaudit-2"} <= {
        entry.name for entry in tmp_path.iterdir()
    }
    second = study("best-of-n", tmp_path)
    assert second.stdout == first.stdout
    assert "started" not in second.stderr
    beta = study("beta", tmp_path)
    assert beta.returncode == 0, beta.stderr
    assert "seed 1: plaudit-beta-0: started" in beta.stderr
    assert "seed 1: plaudit: started" not in beta.stderr
    assert "beta 0, end - highest gold" in beta.stdout


@pytest.mark.slow
@pytest.mark.skipif(not TRL_PYTHON.is_file(), reason="make study-trl makes the environment of TRL 1.11")
def test_the_trainer_of_trl_starts_from_the_same_policy_and_takes_turns_with_ours(tmp_path):
    done = study("trl", tmp_path, "--trl-python", str(TRL_PYTHON))
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_lines(tmp_path / name) for name in ("plaudit-like-trl-1", "trl-1"))
    assert ours[0]["evaluation"] == theirs[0]["evaluation"]
    assert [line["metrics"]["lr"] for line in ours[1:]] == [line["metrics"]["lr"] for line in theirs[1:]]
    assert "| CPU s per iteration |" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not TRL_PYTHON.is_file(), reason="make study-trl makes the environment of TRL 1.11")
def test_with_our_draws_the_trainer_of_trl_samples_what_ours_samples_also_after_an_update(tmp_path):
    done = study("draws", tmp_path, "--ground", "1", "--trl-python", str(TRL_PYTHON))
    assert done.returncode == 0, done.stderr
    assert "| all |" in done.stdout
    for name in ("1", "2-on-1"):
        ours, theirs = (
            read_lines(tmp_path / f"{trainer}-{name}") for trainer in ("plaudit-like-trl", "trl-same-draws")
        )
        for line, other in zip(ours[1:], theirs[1:], strict=True):
            assert line["metrics"]["objective/scores"] == pytest.approx(other["metrics"]["objective/scores"], abs=1e-4)


@pytest.mark.slow
def test_rollouts_by_an_engine_are_compared_in_turn_and_ahead(tmp_path):
    """`make test-vllm` has vLLM's environment."""
    environment = os.environ.get("PLAUDIT_VLLM") or pytest.skip("needs vLLM in an environment of its own")
    python = Path(environment).resolve() / "bin" / "python"
    done = study("engine", tmp_path, "--vllm-python", str(python))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| local sampler \| .* \| 0\.00 ± 0\.00 \|", done.stdout, re.MULTILINE)
    lines = {name: read_lines(tmp_path / f"{name}-1")[1:] for name in ("plaudit", "engine", "engine-ahead")}
    staleness = {name: [line["metrics"]["sampler/staleness"] for line in each] for name, each in lines.items()}
    assert staleness == {"plaudit": [0, 0], "engine": [0, 0], "engine-ahead": [0, 1]}
    assert all(line["metrics"]["val/sampling_kl"] > 0 for line in lines["engine"])
