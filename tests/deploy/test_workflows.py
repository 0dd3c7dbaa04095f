"""The workflows and templates of `.github`: they parse, name what there is, and may do no more than they need."""

import re
from pathlib import Path

import pytest
import yaml
from pages import MAKE_TARGETS

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_runs_targets_that_there_are_and_pinned_actions(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow[True]  # YAML 1.1 takes the key `on` for a truth value
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    targets = [target for command in commands for target in re.findall(r"\bmake ([a-z0-9-]+)", command)]
    assert targets
    assert set(targets) <= MAKE_TARGETS
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in steps(workflow) if "uses" in step)


@pytest.mark.parametrize("name", ["checks", "nightly"])
def test_a_workflow_that_only_tests_may_only_read(name):
    workflow = yaml.safe_load((GITHUB / "workflows" / f"{name}.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())
    assert all(step["with"]["persist-credentials"] is False for step in steps(workflow) if "checkout" in str(step))


def test_a_pull_request_is_linted_and_tested_and_a_night_runs_everything_and_the_nemesis():
    def commands(name):
        workflow = yaml.safe_load((GITHUB / "workflows" / f"{name}.yml").read_text())
        return workflow[True], " ".join(step.get("run", "") for step in steps(workflow))

    triggers, run = commands("checks")
    assert "pull_request" in triggers
    assert "make lint" in run
    assert "make test" in run
    triggers, run = commands("nightly")
    assert "schedule" in triggers
    assert "make test-all" in run
    assert "make test-newest" in run
    assert "make chaos MINUTES=20" in run


def test_templates_are_there_and_name_nobody():
    templates = [*(GITHUB / "ISSUE_TEMPLATE").glob("*.md"), GITHUB / "pull_request_template.md"]
    assert len(templates) == 3
    for template in templates:
        text = template.read_text()
        assert "@" not in text, template.name
        assert "://" not in text, template.name
    for template in templates[:-1]:
        front = yaml.safe_load(template.read_text().split("---")[1])
        assert front.keys() == {"name", "about"}
