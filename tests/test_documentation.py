"""Every page of the documentation: links, navigation, tables of contents, blocks of code.

What pages state of the code is compared by the `test_docs.py` of each package.
"""

import ast
import re
import tomllib

from pages import PAGES, ROOT, anchors, assert_leads_somewhere, blocks, every_page, links, prose

NAVIGATION = ROOT / "docs" / "site" / "navigation.md"
LONG_PAGE_WORDS = 1500


@every_page
def test_every_link_leads_somewhere(page):
    for link in links(page.read_text()):
        if not re.match(r"(https?|mailto):", link):
            assert_leads_somewhere(page, link)


@every_page
def test_a_long_page_begins_with_links_to_its_sections(page):
    text = page.read_text()
    if len(text.split()) > LONG_PAGE_WORDS:
        introduction, *sections = re.split(r"^## ", prose(text), flags=re.MULTILINE)
        linked = {link.removeprefix("#") for link in links(introduction)}
        assert {anchor for section in sections for anchor in anchors("## " + section.splitlines()[0])} <= linked


@every_page
def test_python_and_toml_blocks_can_be_parsed(page):
    text = page.read_text()
    for block in blocks(text, "python"):
        ast.parse(block)
    for block in blocks(text, "toml"):
        tomllib.loads(block)


def test_every_page_stands_in_the_navigation_once():
    """A folder with a README is named by it; the site lists the pages beside it."""
    named = re.findall(r"^([\w./-]+)$", NAVIGATION.read_text().replace("```", "\n```\n"), re.MULTILINE)
    listed_by_folder = {page for page in PAGES if page.parent.name in {"trainers", "decisions"}}
    expected = [
        str(page.relative_to(ROOT).with_suffix(""))
        for page in PAGES
        if page not in (NAVIGATION, ROOT / "README.md") and (page not in listed_by_folder or page.stem == "README")
    ]
    assert sorted(named) == sorted(expected)
