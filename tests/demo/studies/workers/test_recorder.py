import io
import json

import pytest

from plaudit_demo.studies.workers.recorder import Recorder


class Turns(io.StringIO):
    """Lines on stdin that remember what had been answered when each was read."""

    def __init__(self, count, output):
        super().__init__("\n" * count)
        self.answered = []
        self._output = output

    def readline(self):
        self.answered.append(len(self._output.getvalue().splitlines()))
        return super().readline()


def record(iterations, *, every, turns):
    output = io.StringIO()
    stdin = Turns(turns, output)
    evaluations = iter(range(100))
    recorder = Recorder(
        lambda: {"gold": float(next(evaluations))}, every=every, last=iterations, turns=stdin, output=output
    )
    recorder.begin()
    for number in range(iterations):
        recorder.record({"objective/kl": 0.5 * number})
    return [json.loads(line) for line in output.getvalue().splitlines()], stdin.answered


def test_each_turn_is_answered_by_one_line_before_the_next_is_taken():
    lines, answered = record(3, every=2, turns=4)
    assert answered == [0, 1, 2, 3]
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]


def test_the_start_the_end_and_every_nth_iteration_are_evaluated():
    lines, _ = record(5, every=2, turns=6)
    assert [line["iteration"] for line in lines if line["evaluation"]] == [0, 2, 4, 5]


def test_an_iteration_is_told_with_its_times_and_the_trainers_figures():
    _, line = record(1, every=1, turns=2)[0]
    assert line["metrics"] == {"objective/kl": 0.0}
    assert line["wall_s"] >= 0
    assert line["cpu_s"] >= 0


def test_a_run_ends_when_nobody_gives_it_turns_any_more():
    with pytest.raises(SystemExit):
        record(3, every=1, turns=2)
