import json
import os
from pathlib import Path

import pytest

from plaudit_demo.steps.cli import main

TRL_PYTHON = Path(__file__).parents[3] / ".venv-trl-ppo" / "bin" / "python"


def test_a_missing_environment_of_trl_is_one_line_that_names_the_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["--output", str(tmp_path), "--trl-python", "/no/python"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plaudit_demo.steps: error: --trl-python /no/python: there is no such file")
    assert "make study-prm" in error


@pytest.mark.slow
@pytest.mark.skipif(not TRL_PYTHON.is_file(), reason="no environment with TRL 1.11; `make study-prm` makes it")
def test_ppo_makes_fewer_wrong_steps_by_a_process_reward_model_that_trl_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    arguments = ["--output", str(tmp_path), "--seeds", "1", "--trl-python", str(TRL_PYTHON)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    summary = json.loads((tmp_path / "seed-1" / "summary.json").read_text())
    assert 0.3 < summary["before"]["step_errors"] < 0.6
    assert summary["after"]["step_errors"] < 0.6 * summary["before"]["step_errors"]
    assert main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == table
    assert "started" not in again.err
