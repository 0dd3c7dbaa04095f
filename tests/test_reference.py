"""The pages of docs/reference/ say what the code declares.

After a change that is meant: `PLAUDIT_UPDATE_CONTRACT=1 .venv/bin/pytest tests/test_reference.py`.
"""

import os
from pathlib import Path

import pytest
from reference import PAGES

DOCS = Path(__file__).parents[1] / "docs" / "reference"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_reference_is_what_the_code_declares(name):
    text, page = PAGES[name](), DOCS / name
    if os.environ.get("PLAUDIT_UPDATE_CONTRACT"):
        page.write_text(text)
    assert page.read_text() == text, f"the code declares something else than {page}; see the first lines of this file"
