"""Trackers: what TensorBoard reads of a run, and what is refused."""

import pytest
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plaudit_ppo.errors import ConfigError
from plaudit_ppo.runs.log import read_log


def scalars(run):
    """What TensorBoard shows: name to (step, value) pairs."""
    events = EventAccumulator(str(run / "trackers" / "plaudit-ppo"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_gets_every_number_of_the_log_at_its_iteration(make_trainer, tmp_path):
    make_trainer(iterations=3, trackers=["tensorboard"]).train()
    log, shown = read_log(tmp_path / "run" / "log.jsonl"), scalars(tmp_path / "run")
    assert shown.keys() == {name for name, value in log[0].items() if value is not None}
    for name, points in shown.items():
        assert [step for step, _ in points] == [1, 2, 3]
        assert [value for _, value in points] == pytest.approx([line[name] for line in log], rel=1e-6)


def test_a_resumed_run_goes_on_at_its_step_and_hides_what_is_done_again(make_trainer, tmp_path):
    class KilledError(Exception):
        pass

    def kill(metrics):
        if metrics["iteration"] == 3:
            raise KilledError

    settings = {"iterations": 5, "checkpoint_every": 2, "trackers": ["tensorboard"]}
    with pytest.raises(KilledError):
        make_trainer(**settings).train(on_iteration=kill)
    make_trainer(**settings).train(resume=True)
    assert [step for step, _ in scalars(tmp_path / "run")["objective/kl"]] == [1, 2, 3, 4, 5]


def test_no_tracker_writes_no_file(make_trainer, tmp_path):
    make_trainer(iterations=1).train()
    assert not (tmp_path / "run" / "trackers").exists()


def test_a_tracker_that_is_unknown_missing_or_broken_is_refused_in_one_line(make_trainer, monkeypatch):
    with pytest.raises(ConfigError, match=r'trackers: "tensorbord" is not a tracker; choose from aim, .*tensorboard'):
        make_trainer(trackers=["tensorbord"])
    with pytest.raises(ConfigError, match="trackers: aim is not installed; pip install aim"):
        make_trainer(trackers=["aim"])

    def start(self):
        raise RuntimeError("no login")

    monkeypatch.setattr(tracking.TensorBoardTracker, "start", start)
    with pytest.raises(ConfigError, match=r"trackers: tensorboard cannot be started \(no login\)"):
        make_trainer(trackers=["tensorboard"]).train()
