import json
import re
from pathlib import Path

import pytest

from plaudit_ppo.runs.findings import find

PAGE = (Path(__file__).parents[3] / "docs" / "ppo-troubleshooting.md").read_text()
WELL = {
    "val/eos_share": 0.9,
    "scoring/score_std": 0.5,
    "objective/kl": 2.0,
    "val/explained_variance": 0.2,
    "tokens/completion_mean": 30.0,
}


def log(count=12, **columns):
    """So many iterations in which all is well, but for the columns given: the values of the last iterations."""
    lines = [{"iteration": number + 1, **WELL} for number in range(count)]
    for name, values in columns.items():
        for line, value in zip(lines[-len(values) :], values, strict=True):
            line[name.replace("__", "/")] = value
    return lines


def named(lines):
    return [finding.name for finding in find(lines)]


def test_a_run_in_which_all_is_well_has_no_findings():
    assert named(log()) == []
    assert named(log(1)) == []
    assert named([]) == []


def test_the_demos_run_has_no_findings():
    """Its log with seed 17, in columns; also while it still went on."""
    lines = [json.loads(line) for line in Path(__file__).with_name("demo_log.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    for end in range(1, 41):
        assert named(lines[:end]) == [], end


@pytest.mark.parametrize(
    ("columns", "name", "says"),
    [
        ({"val__eos_share": [0.3] * 5}, "Unfinished completions", "30% of the rollouts end with EOS"),
        ({"scoring__score_std": [0.0] * 3}, "Constant scores", "differ by at most 0 (scoring/score_std, the last 3"),
        ({"objective__kl": [1.5, 7.5, 6.0]}, "KL jump", "goes from 1.5 to 7.5 nats in iteration 11"),
        ({"val__explained_variance": [-0.5] * 5}, "Value error above variance", "is -0.5 (val/explained_variance"),
        ({"tokens__completion_mean": [60.0] * 5}, "Length drift", "go from 30 to 60 tokens"),
        ({"tokens__completion_mean": [3.0] * 5}, "Length drift", "go from 30 to 3 tokens"),
    ],
)
def test_what_stands_out_is_named_with_its_figures_and_alone(columns, name, says):
    (finding,) = find(log(**columns))
    assert finding.name == name
    assert says in finding.figures
    assert finding.cause


@pytest.mark.parametrize(
    "columns",
    [
        {"val__eos_share": [0.1, 0.5, 0.6, 0.6, 0.7, 0.8]},
        {"scoring__score_std": [0.0, 0.0]},
        {"objective__kl": [1.0, 4.9]},
        {"objective__kl": [4.0, 6.0, 7.5]},
        {"val__explained_variance": [-0.1, 0.1, 0.1, 0.1, 0.1]},
        {"tokens__completion_mean": [44.0] * 5},
    ],
)
def test_what_is_within_its_limit_is_no_finding(columns):
    assert named(log(**columns)) == []


def test_a_critic_that_is_new_and_a_length_of_few_iterations_are_no_findings():
    lines = log(9, val__explained_variance=[-3.0] * 9, tokens__completion_mean=[3.0] * 4)
    assert named(lines) == []


def test_figures_that_are_null_or_missing_are_not_counted():
    lines = log(12, **{name.replace("/", "__"): [None] * 12 for name in WELL})
    assert named(lines) == []
    assert named([{"iteration": number} for number in range(1, 13)]) == []


def test_every_finding_has_its_section_in_the_troubleshooting_page():
    everything = log(
        val__eos_share=[0.0] * 5,
        scoring__score_std=[0.0] * 3,
        objective__kl=[1.0, 9.0],
        val__explained_variance=[-1.0] * 5,
        tokens__completion_mean=[100.0] * 5,
    )
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert len(named(everything)) == 5
    assert set(named(everything)) <= set(sections)
