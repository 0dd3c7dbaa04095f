"""docs/faults.md names a test for each of its faults; every test that it or SECURITY.md names is there."""

import ast
import re
from pathlib import Path

import pytest
from pages import rows

ROOT = Path(__file__).parents[2]
FAULTS = {int(row["#"]): row for row in rows((ROOT / "docs/faults.md").read_text(), "#", "fault", "promise", "tests")}


def named_tests(text):
    return re.findall(r"`(tests/\S+\.py)::(\w+)`", text)


def functions(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_promise_and_a_test():
    assert sorted(FAULTS) == list(range(1, 28))
    for number, row in FAULTS.items():
        assert row["fault"], number
        assert row["promise"], number
        assert named_tests(row["tests"]), number


@pytest.mark.parametrize("page", ["docs/faults.md", "SECURITY.md"])
def test_every_named_test_exists(page):
    for file, name in named_tests((ROOT / page).read_text()):
        assert (ROOT / file).is_file(), file
        assert name in functions(ROOT / file), f"{file}::{name}"
