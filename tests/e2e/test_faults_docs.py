"""docs/development/faults.md names a test for each of its faults; every test that a page names is there."""

import ast
import re

from pages import ROOT, every_page, rows

FAULTS_PAGE = (ROOT / "docs/development/faults.md").read_text()
FAULTS = {int(row["#"]): row for row in rows(FAULTS_PAGE, "#", "fault", "promise", "tests")}
TRAPS = rows(FAULTS_PAGE, "#", "trap", "what holds", "tests")


def named_tests(text):
    """(file, name of a function) of tests; the name is empty where a whole file or folder is meant."""
    return re.findall(r"`(tests/[\w./]+)(?:::(\w+))?`", text)


def functions(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_promise_and_a_test():
    assert sorted(FAULTS) == list(range(1, 29))
    for number, row in FAULTS.items():
        assert row["fault"], number
        assert row["promise"], number
        assert any(name for _, name in named_tests(row["tests"])), number


def test_every_trap_has_a_promise_and_a_test():
    for row in TRAPS:
        assert re.fullmatch(r"T\d+", row["#"])
        assert row["trap"], row["#"]
        assert row["what holds"], row["#"]
        assert any(name for _, name in named_tests(row["tests"])), row["#"]


@every_page
def test_every_named_test_exists(page):
    for file, name in named_tests(page.read_text()):
        assert (ROOT / file).exists(), file
        assert not name or name in functions(ROOT / file), f"{file}::{name}"
