import io
import json
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from plaudit_demo.errors import DemoError
from plaudit_demo.progress import Progress
from plaudit_demo.settings import DemoSettings
from plaudit_demo.studies.runs import is_done, read_lines, run_in_turns
from plaudit_demo.studies.settings import TRL, WITHOUT_KL, StudySettings, run_directory, run_spec

# An interpreter that speaks like a worker: a line before training and one per iteration, each for a line on stdin.
WORKER = """#!{python}
import json, sys
from pathlib import Path
spec = json.loads(Path(sys.argv[-1]).read_text())
for iteration in range(spec["iterations"] + 1):
    sys.stdin.readline()
    with open({journal!r}, "a") as journal:
        journal.write(spec["trainer"][0])
    if iteration == {fails_at}:
        sys.exit("out of memory")
    print(json.dumps({{"iteration": iteration, "evaluation": None}}), flush=True)
"""


@pytest.fixture
def fake(tmp_path):
    """Makes an interpreter, whose runs note their turns in a journal."""

    def make(fails_at=-1):
        path = tmp_path / "python"
        path.write_text(WORKER.format(python=sys.executable, journal=str(tmp_path / "journal"), fails_at=fails_at))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.fixture
def stage():
    with Progress(io.StringIO(), 1).stage("train", 1) as stage:
        yield stage


def spec_of(variant, url="http://127.0.0.1:1", **changes):
    settings = StudySettings(sizes=DemoSettings(), output=Path("/nowhere"), seeds=(1,), iterations=3, evaluate_every=1)
    return replace(run_spec(settings, variant, 1, url), **changes)


def test_runs_take_turns_in_an_order_that_changes_with_every_round(tmp_path, fake, stage):
    runs = {tmp_path / "a": spec_of(WITHOUT_KL), tmp_path / "b": spec_of(TRL)}
    run_in_turns(runs, {"plaudit": fake(), "trl": fake()}, stage)
    assert (tmp_path / "journal").read_text() == "tp" + "pt" + "tp" + "pt"
    assert [line["iteration"] for line in read_lines(tmp_path / "a")] == [0, 1, 2, 3]


def test_a_run_that_is_done_counts_for_its_settings_alone_wherever_the_service_was(tmp_path, fake, stage):
    run_in_turns({tmp_path / "a": spec_of(WITHOUT_KL)}, {"plaudit": fake()}, stage)
    assert is_done(tmp_path / "a", spec_of(WITHOUT_KL, url="http://127.0.0.1:2"))
    assert not is_done(tmp_path / "a", spec_of(WITHOUT_KL, learning_rate=1.0))
    assert not is_done(tmp_path / "b", spec_of(WITHOUT_KL))


def test_a_run_that_fails_says_why_and_is_not_done(tmp_path, fake, stage):
    spec = spec_of(WITHOUT_KL)
    with pytest.raises(DemoError, match="status 1: out of memory"):
        run_in_turns({tmp_path / "a": spec}, {"plaudit": fake(fails_at=2)}, stage)
    assert not is_done(tmp_path / "a", spec)


def test_a_run_that_was_interrupted_begins_anew(tmp_path, fake, stage):
    (tmp_path / "a" / "ppo").mkdir(parents=True)
    (tmp_path / "a" / "ppo" / "log.jsonl").write_text("half of a run")
    run_in_turns({tmp_path / "a": spec_of(WITHOUT_KL)}, {"plaudit": fake()}, stage)
    assert not (tmp_path / "a" / "ppo").exists()
    assert json.loads((tmp_path / "a" / "spec.json").read_text())["kl_coef"] == 0


def test_seeds_that_share_a_ground_have_runs_of_their_own_on_it():
    apart = StudySettings(
        sizes=DemoSettings(), output=Path("/nowhere"), seeds=(1, 2), iterations=3, evaluate_every=1, ground_seed=None
    )
    shared = replace(apart, ground_seed=1)
    assert [run_spec(shared, TRL, seed, "").seed for seed in (1, 2)] == [1, 2]
    assert {run_spec(shared, TRL, seed, "").ground for seed in (1, 2)} == {"/nowhere/ground-1"}
    assert shared.demo(2) == apart.demo(1)
    assert run_spec(shared, TRL, 1, "") == run_spec(apart, TRL, 1, "")
    assert run_directory(shared, TRL, 2) != run_directory(apart, TRL, 2)
