"""The Dockerfile by its linter, the locks that its images are made of, and the workflow that publishes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "deploy" / "locks").glob("*.txt"))
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(.*)$", re.MULTILINE)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text):
    return {normal(name): version for name, version, _ in PIN.findall(text)}


def asked_for(project, extra):
    """What the base install and an extra name, through the extras that it names."""
    names = set()
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"].get(extra, [])):
        names |= {normal(requirement.name)} - {"plaudit"}
        for other in requirement.extras if requirement.name == "plaudit" else ():
            names |= asked_for(project, other)
    return names


def hadolint(text):
    command = [Path(sys.executable).with_name("hadolint"), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def test_the_linter_has_nothing_to_say_and_would_say_it():
    text = (ROOT / "Dockerfile").read_text()
    done = hadolint(text)
    assert (done.returncode, done.stdout) == (0, "")
    assert "DL3007" in hadolint(text.replace("python:3.13.18-slim-trixie", "python:latest") + "FROM a:latest\n").stdout


def test_images_run_as_a_number_that_is_not_root():
    users = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users[0] == users[-1] == "10001:10001"


def test_the_base_image_is_pinned_to_a_version():
    (base,) = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert re.search(r":\d+\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?$", base)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_has_hashes_and_the_version_that_is_tested(lock):
    text = lock.read_text()
    assert len(re.findall(r"^\S+==\S+.*\\\n    --hash=sha256:", text, re.MULTILINE)) == len(PIN.findall(text)) > 0
    tested = pins((ROOT / "constraints.txt").read_text())
    others = {name for name, version in pins(text).items() if tested.get(name, version) != version}
    assert not others


@pytest.mark.parametrize(("lock", "extra"), [("cpu", "service"), ("cuda", "service-gpu"), ("train", "train")])
def test_a_lock_has_every_package_that_its_extra_names(lock, extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    missing = asked_for(project, extra) - set(pins((ROOT / "deploy" / "locks" / f"{lock}.txt").read_text()))
    assert not missing, "run `make locks`"


@pytest.mark.parametrize(
    ("lock", "present", "absent"),
    [
        ("cpu", {"onnxruntime"}, {"torch", "onnxruntime-gpu", "transformers"}),
        ("cuda", {"onnxruntime-gpu", "nvidia-cudnn-cu13"}, {"torch", "onnxruntime", "transformers"}),
        ("train", {"torch", "peft"}, {"onnxruntime", "fastapi", "trl"}),
    ],
)
def test_a_lock_holds_its_role_and_no_other(lock, present, absent):
    names = set(pins((ROOT / "deploy" / "locks" / f"{lock}.txt").read_text()))
    assert present <= names
    assert not absent & names


def test_what_publishes_is_pinned_to_commits_and_has_no_more_rights_than_it_needs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    uses = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert all(re.search(r"@[0-9a-f]{40}$", action) for action in uses)
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["build"]["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
