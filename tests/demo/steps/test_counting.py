import random

import pytest

from plaudit_demo.steps.counting import Task, judge, make_tasks, read_task, split_steps, write_steps

TASK = Task(4, 3, 13)


def test_a_prompt_says_its_task():
    assert TASK.prompt == "from 4 by 3 to 13:\n"
    assert all(read_task(task.prompt) == task for task in make_tasks())


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("7\n10\n13", [True, True, True]),
        ("7\n11\n14", [True, False, False]),
        ("7\n11\n13", [True, False, False]),
        ("7\n10\n13\n16", [True, True, True, False]),
        ("7\n\n10\n", [True, True]),
        ("7\nten\n10", [True, False, False]),
        ("07", [False]),
        ("", []),
    ],
)
def test_a_step_is_right_while_all_before_it_are(completion, right):
    assert judge(TASK, split_steps(completion)) == right


def test_examples_have_errors_and_without_any_they_reach_their_end():
    rng = random.Random(3)
    tasks = make_tasks()
    flawless = [(task, write_steps(task, rng, error_rate=0)) for task in tasks]
    assert all(all(judge(task, steps)) and int(steps[-1]) == task.end for task, steps in flawless)
    written = [judge(task, write_steps(task, rng, error_rate=0.15)) for task in tasks * 4]
    assert 0.3 < sum(map(all, written)) / len(written) < 0.6
