"""The README's blocks run as they stand, but for the paths and the port."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import assert_leads_somewhere, names_in, rows

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def url(serve, causal_bundle):
    with serve(causal_bundle) as service:
        yield service.url


def test_the_curl_block_gets_a_score_for_each_completion(url):
    (block,) = [block for block in blocks("bash") if block.startswith("curl")]
    done = subprocess.run(
        ["bash", "-c", block.replace("http://127.0.0.1:8000", url)], capture_output=True, text=True, timeout=60
    )
    results = json.loads(done.stdout)["results"]
    assert [result["status"] for result in results] == ["ok", "ok"]


def test_the_python_block_prints_finite_scores_and_the_fingerprint(url):
    (block,) = blocks("python")
    command = [sys.executable, "-c", block.replace("http://127.0.0.1:8000", url)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    scores, fingerprint = done.stdout.rsplit(maxsplit=1)
    assert all(math.isfinite(score) for score in json.loads(scores))
    assert fingerprint.startswith("sha256:")


def test_the_serving_commands_are_those_that_the_other_blocks_run_after():
    """The service that they ask is started by the second, on a bundle that the first has made."""
    (block,) = [block for block in blocks("bash") if block.startswith("plaudit-export")]
    export, serve = (line.split("#")[0].split() for line in block.splitlines())
    assert export == ["plaudit-export", "checkpoint", "path/to/checkpoint", "rm-bundle"]
    assert serve == ["plaudit-serve", "rm-bundle"]


@pytest.mark.parametrize("command", sorted(set(re.findall(r"plaudit-(?:\w+)", README))))
def test_every_command_that_the_readme_names_answers_help(command):
    path = Path(sys.executable).parent / command
    done = subprocess.run([str(path), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {command}")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)h][^)]*)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(link):
    assert_leads_somewhere(ROOT / "README.md", link)


ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def test_the_architecture_is_short_and_every_invariant_names_what_holds_it():
    assert len(ARCHITECTURE.splitlines()) <= 150
    for invariant in ARCHITECTURE.split("**Invariant:**")[1:]:
        assert "`tests/" in invariant.split("\n\n")[0]


PACKAGES = sorted(path.parent for path in ROOT.glob("*/plaudit_*/__init__.py"))


def mapped(package):
    """What the rows of a package in the code map name."""
    names, current = [], None
    for row in rows(ARCHITECTURE, "where"):
        named = names_in(" ".join(row.values()))
        current = next((name for name in named if name.startswith("plaudit_")), current)
        names += named if current == package else []
    return names


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_wing_of_a_package_is_in_the_code_map(package):
    wings = {f"{path.parent.relative_to(package)}/" for path in package.rglob("__init__.py") if path.parent != package}
    assert wings - set(mapped(package.name)) == set()


def test_every_module_on_top_of_the_service_is_in_the_code_map():
    modules = {path.name for path in (ROOT / "service" / "plaudit_service").glob("*.py")} - {"__init__.py"}
    assert modules - set(mapped("plaudit_service")) == set()
