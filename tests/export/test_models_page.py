"""The page of supported reward models names every format and refusal of the code and no other, each with a test."""

import ast
import re
from pathlib import Path

import pytest
from pages import assert_leads_somewhere, names_in, rows

from plaudit_export.checkpoints.formats import FORMATS, REFUSED
from plaudit_export.testing import CAUSAL_ARCHITECTURES, ENCODER_ARCHITECTURES

TESTS = Path(__file__).parent
PAGE = TESTS.parents[1] / "docs" / "models.md"
TEXT = PAGE.read_text()
# Formats that are no row of the code's table: transformers' own, adapters, and what is asked for by a command.
OTHERS = ("classifier, ", "classifier of ", "LoRA adapter of ", "logits of tokens: ", "a graph of ")
WITH_TESTS = [row for table in ("format", "refused", "on disk", "architecture") for row in rows(TEXT, table, "test")]


def names_of_tests(file: Path) -> set[str]:
    """The names of a file's tests, those of a class behind the class's."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return {name for name in names if name.rpartition("::")[2].startswith("test_")}


@pytest.mark.parametrize("test", sorted({test for row in WITH_TESTS for test in names_in(row["test"])}))
def test_every_test_that_the_page_names_is_there(test):
    file, _, name = test.partition("::")
    assert name in names_of_tests(TESTS / file)


def test_every_row_names_a_test():
    assert all("::" in row["test"] for row in WITH_TESTS)


def test_every_format_of_the_code_is_on_the_page_and_no_other():
    documented = [row["format"] for row in rows(TEXT, "format", "test") if not row["format"].startswith(OTHERS)]
    assert sorted(documented) == sorted(row.name for row in FORMATS)


def test_everything_that_is_refused_by_name_is_on_the_page_with_its_reason_and_no_other():
    documented = {row["refused"]: row["why"] for row in rows(TEXT, "refused", "test")}
    assert documented == {row.name: row.reason for row in REFUSED}


def test_every_architecture_that_the_tests_cover_is_on_the_page():
    exported = {
        name for row in rows(TEXT, "architecture") if row["exported"] == "yes" for name in names_in(row["architecture"])
    }
    assert exported >= {*CAUSAL_ARCHITECTURES, *ENCODER_ARCHITECTURES}


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)h][^)]*)\)", TEXT))))
def test_every_link_of_the_page_leads_somewhere(link):
    assert_leads_somewhere(PAGE, link)
