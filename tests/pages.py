"""The pages of the documentation: where their links lead."""

import re


def anchors(markdown):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def assert_leads_somewhere(page, link):
    """A link of a page, as it is written there, to a file or to a heading."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text())
