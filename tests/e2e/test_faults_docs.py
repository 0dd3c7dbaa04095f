"""docs/faults.md names a test for each of its faults; every test that it or SECURITY.md names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [line.split("|")[1:-1] for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
FAULTS = {int(row[0]): row for row in ROWS if row[0].strip().isdigit()}


def named_tests(text):
    return re.findall(r"`(tests/\S+\.py)::(\w+)`", text)


def functions(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_promise_and_a_test():
    assert sorted(FAULTS) == list(range(1, 28))
    for number, (_, fault, promise, tests) in FAULTS.items():
        assert fault.strip(), number
        assert promise.strip(), number
        assert named_tests(tests), number


@pytest.mark.parametrize("page", ["docs/faults.md", "SECURITY.md"])
def test_every_named_test_exists(page):
    for file, name in named_tests((ROOT / page).read_text()):
        assert (ROOT / file).is_file(), file
        assert name in functions(ROOT / file), f"{file}::{name}"
