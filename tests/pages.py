"""The pages of the documentation: what their tables state, and where their links lead."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "examples/**/*.md", "tests/cuda_stub/*.md")
    for page in ROOT.glob(pattern)
)
MAKE_TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def rows(markdown, *columns):
    """The rows of all tables that have these columns, each as {column: cell}; there is at least one."""
    found = []
    for table in re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE):
        header, *lines = (_cells(line) for line in table.splitlines())
        if set(columns) <= set(header):
            assert all(len(line) == len(header) for line in lines), f"a cell too many or too few below {header}"
            found += [dict(zip(header, line, strict=True)) for line in lines[1:]]
    assert found, f"no table has the columns {', '.join(columns)}"
    return found


def names_in(text):
    """What a cell, or a page, names in code font."""
    return re.findall(r"`([^`\n]+)`", text)


def name_in(cell):
    """The one name in a cell that stands for its row: what it names first."""
    assert names_in(cell), f"no name in code font: {cell}"
    return names_in(cell)[0]


def stated(value):
    """A value as a setting's default is compared: 1024, `1024`, 1,024 and 1024.0 are one."""
    text = value.replace("`", "").strip()
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def blocks(markdown, language="[^\n]*"):
    """The blocks of code in a language, or all, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)


def prose(markdown):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)


def links(markdown):
    """Where the links and pictures of a page lead, as it is written there."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(markdown)))


def anchors(markdown):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def assert_leads_somewhere(page, link):
    """A link of a page, as it is written there, to a file or to a heading."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text())


def _cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
