import io

import pytest

from plaudit_demo.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_there_is_a_plain_line_at_most_every_five_seconds():
    clock, stream = Clock(), io.StringIO()
    with Progress(stream, 2, clock).stage("warm up", 10) as stage:
        for step in range(10):
            clock.now += 2
            stage.advance(note=f"loss {step}")
    assert stream.getvalue().splitlines() == [
        "1/2 warm up: started",
        "1/2 warm up: 3/10 loss 2",
        "1/2 warm up: 6/10 loss 5",
        "1/2 warm up: 9/10 loss 8",
        "1/2 warm up: done in 20.0 s loss 9",
    ]


def test_without_a_terminal_a_stage_of_one_step_says_how_long_it_runs():
    clock, stream = Clock(), io.StringIO()
    with Progress(stream, 1, clock).stage("export the bundle") as stage:
        for _ in range(2):
            clock.now += 6
            stage.advance(0)
        stage.advance()
    assert stream.getvalue().splitlines() == [
        "1/1 export the bundle: started",
        "1/1 export the bundle: 6 s",
        "1/1 export the bundle: 12 s",
        "1/1 export the bundle: done in 12.0 s",
    ]


def test_stages_are_numbered_and_timed():
    clock = Clock()
    progress = Progress(io.StringIO(), 2, clock)
    for title, seconds in (("one", 3), ("two", 4)):
        with progress.stage(title):
            clock.now += seconds
    assert progress.seconds == {"one": 3, "two": 4}


def test_a_stage_that_fails_says_how_far_it_came():
    stream = io.StringIO()

    def fail():
        with Progress(stream, 1, Clock()).stage("train", 5) as stage:
            stage.advance(2)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert stream.getvalue().splitlines()[-1] == "1/1 train: ended at 2/5 in 0.0 s"


def test_a_terminal_gets_a_bar_with_the_figures_of_the_moment():
    stream = Terminal()
    with Progress(stream, 7).stage("train", 4) as stage:
        stage.advance(4, "gold 1.50")
        stage.advance(0)
    last = stream.getvalue().split("\r")[-1]
    assert "1/7 train" in last
    assert "100%" in last
    assert "gold 1.50" in last
