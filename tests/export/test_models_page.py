"""The page of supported models names every format and refusal of the code and no other, another page their tests."""

import ast
from pathlib import Path

import pytest
from pages import names_in, rows

from plaudit_export.checkpoints.formats import FORMATS, REFUSED
from plaudit_export.testing import CAUSAL_ARCHITECTURES, ENCODER_ARCHITECTURES

TESTS = Path(__file__).parent
DOCS = TESTS.parents[1] / "docs"
TEXT = (DOCS / "models.md").read_text()
EVIDENCE = (DOCS / "development" / "models.md").read_text()
# Formats that are no row of the code's table: transformers' own, adapters, and what is asked for by a command.
OTHERS = ("classifier, ", "classifier of ", "LoRA adapter of ", "logits of tokens: ", "a graph of ")
TABLES = ("format", "on disk", "architecture", "`model_type`")


def names_of_tests(file: Path) -> set[str]:
    """The names of a file's tests, those of a class behind the class's."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return {name for name in names if name.rpartition("::")[2].startswith("test_")}


@pytest.mark.parametrize("test", sorted({name for name in names_in(EVIDENCE) if "::" in name}))
def test_every_test_that_the_page_names_is_there(test):
    file, _, name = test.partition("::")
    assert name in names_of_tests(TESTS / file)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_a_test(table):
    tests = {row[table]: row["test"] for row in rows(EVIDENCE, table, "test")}
    stated = {row[table] for row in rows(TEXT, table)}
    assert tests.keys() == stated
    assert all("::" in named for named in tests.values())


def test_every_format_of_the_code_is_on_the_page_and_no_other():
    documented = [row["format"] for row in rows(TEXT, "format", "what to pass") if not row["format"].startswith(OTHERS)]
    assert sorted(documented) == sorted(row.name for row in FORMATS)


def test_the_text_rule_of_every_format_is_on_the_page():
    formats = [row["format"] for row in rows(TEXT, "format", "what to pass")]
    assert [row["format"] for row in rows(TEXT, "format", "text rule")] == formats


def test_everything_that_is_refused_by_name_is_on_the_page_with_its_reason_and_no_other():
    documented = {row["refused"]: row["why"] for row in rows(TEXT, "refused")}
    assert documented == {row.name: row.reason for row in REFUSED}


def test_every_architecture_that_the_tests_cover_is_on_the_page():
    exported = {
        name for row in rows(TEXT, "architecture") if row["exported"] == "yes" for name in names_in(row["architecture"])
    }
    assert exported >= {*CAUSAL_ARCHITECTURES, *ENCODER_ARCHITECTURES}
