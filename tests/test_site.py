"""The site that `make docs` made: `make test-docs` runs this."""

import re
from pathlib import Path

import pytest

SITE = Path(__file__).parents[1] / "site"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SITE.exists(), reason="there is no site: make docs"),
]


def test_no_page_loads_anything_from_another_host():
    """Links to follow may lead elsewhere; scripts, styles, fonts and pictures may not."""
    for page in SITE.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//', text), page
        assert not re.search(r'<link(?![^>]*rel="canonical")[^>]*\shref="(?:https?:)?//', text), page
    for style in SITE.rglob("*.css"):
        assert not re.search(r"""url\(["']?(?:https?:)?//|@import""", style.read_text()), style


def test_the_search_finds_pages_by_their_words():
    index = (SITE / "searchindex.js").read_text()
    for page in ("docs/gpu", "docs/reference/python", "docs/reference/cli"):
        assert page in index
    assert "fingerprint" in index


def test_every_diagram_is_drawn():
    sources = (SITE.parent / "docs").rglob("*.md")
    num_diagrams = sum(page.read_text().count("\n```mermaid\n") for page in sources)
    num_drawn = sum(page.read_text().count('<figure class="diagram"><svg') for page in SITE.rglob("*.html"))
    assert num_drawn == num_diagrams >= 3
