"""How the tests read a page."""

import pytest
from pages import anchors, blocks, links, name_in, names_in, rows, stated

PAGE = """
| flag | default | what |
|---|---|---|
| `--port` | 8000 | the `port`; a\\|b |

Prose.

| metric | what |
|---|---|
| `score` | none |

| what | default | flag |
|:--|--:|---|
| late | `1,024` | `--size` |
"""


def test_rows_are_those_of_every_table_that_has_the_columns_in_any_order():
    assert [(name_in(row["flag"]), row["default"]) for row in rows(PAGE, "flag", "default")] == [
        ("--port", "8000"),
        ("--size", "`1,024`"),
    ]
    assert rows(PAGE, "metric") == [{"metric": "`score`", "what": "none"}]
    assert rows(PAGE, "flag")[0]["what"] == r"the `port`; a\|b"


def test_a_table_that_is_not_there_or_has_a_stray_bar_is_an_error():
    with pytest.raises(AssertionError, match="no table has the columns flag, colour"):
        rows(PAGE, "flag", "colour")
    with pytest.raises(AssertionError, match="a cell too many or too few"):
        rows(PAGE.replace(r"a\|b", "a|b"), "flag")


def test_a_name_is_in_code_font():
    assert names_in("`a` and `b`, not c") == ["a", "b"]
    with pytest.raises(AssertionError, match="no name in code font: c"):
        name_in("c")


def test_numbers_are_alike_however_they_are_written():
    assert {stated(cell) for cell in ("1024", "`1024`", "1,024", "1024.0")} == {1024.0}
    assert stated("`false`") == "false"
    assert stated('`"sum"`') == '"sum"'
    assert stated("0") != stated("false")


def test_links_and_anchors_are_not_those_of_code():
    page = "# A `b`\n\n[one](x.md#a-b), `[two](y)`\n\n```bash\n# three\n[four](z)\n```\n"
    assert links(page) == ["x.md#a-b"]
    assert anchors(page) == {"a-b"}
    assert blocks(page, "bash") == ["# three\n[four](z)\n"]
