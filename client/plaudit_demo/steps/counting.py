"""Counting in steps, of which each can be judged: "from 4 by 3 to 13:" asks for "7", "10", "13", a line each."""

import random
from dataclasses import dataclass

SEPARATOR = "\n"

_STARTS = range(21)
_STRIDES = (1, 2, 3)
_LENGTHS = range(3, 7)
_MAX_STEPS = 10
_ERRORS = tuple(error for error in range(-4, 8) if error != 0)


@dataclass(frozen=True)
class Task:
    """A prompt, and what counts up from `start` by `stride` until `end`."""

    start: int
    stride: int
    end: int

    @property
    def prompt(self) -> str:
        """The prompt; a completion follows it without a break."""
        return f"from {self.start} by {self.stride} to {self.end}:\n"


def make_tasks() -> list[Task]:
    """All tasks, in a fixed order."""
    return [
        Task(start, stride, start + stride * length) for start in _STARTS for stride in _STRIDES for length in _LENGTHS
    ]


def read_task(prompt: str) -> Task:
    """The task of a prompt."""
    words = prompt.strip().rstrip(":").split()
    return Task(int(words[1]), int(words[3]), int(words[5]))


def split_steps(completion: str) -> list[str]:
    """The steps of a completion, as `step_separator` makes them: white space alone is no step."""
    return [part for part in completion.split(SEPARATOR) if part.strip()]


def judge(task: Task, steps: list[str]) -> list[bool]:
    """Whether each step is right: all before it are, and it is the next number and not beyond the end.

    A step behind a wrong one is wrong, as labels of process reward models mostly have it. If it could be right again,
    a policy would be paid for going back and counting once more.
    """
    right: list[bool] = []
    number = task.start
    for step in steps:
        number += task.stride
        right.append(all(right) and step.strip() == str(number) and number <= task.end)
    return right


def write_steps(task: Task, rng: random.Random, *, error_rate: float) -> list[str]:
    """Steps as somebody writes them who miscounts now and then, and as often goes on where the end is reached."""
    steps: list[str] = []
    number = task.start
    while len(steps) < _MAX_STEPS and (number < task.end or rng.random() < error_rate):
        wrong = rng.choice(_ERRORS) if rng.random() < error_rate else 0
        number = max(0, number + task.stride + wrong)
        steps.append(str(number))
    return steps
