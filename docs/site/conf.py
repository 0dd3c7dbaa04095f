"""How Sphinx makes the site: `make docs`. The sources are the Markdown pages as they stand in the repository.

The repository's root is the source folder: links between pages, also those outside docs/, are links of the site.
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx

SITE = Path(__file__).parent
sys.path.insert(0, str(SITE))  # mermaid_svg

project = "plaudit"
author = "the plaudit authors"
version = installed("plaudit")
root_doc = "README"
include_patterns = [
    "docs/**",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "deploy/ray/README.md",
    "examples/README.md",
    "tests/cuda_stub/README.md",
]
exclude_patterns = [".*", "docs/site", "site", "runs", "dist"]

extensions = [
    "mermaid_svg",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.programoutput",
]

# Headings get the anchors that GitHub gives them: the same links work in both places.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"plaudit {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_extra_path = ["index.html"]
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"

_FOLDER = """
```{toctree}
:hidden:
:glob:

*
```
"""


def add_navigation(_: Sphinx, page: str, text: list[str]) -> None:
    """Adds to a page what the sidebar shows below it: all of the site, or the pages of a folder beside its README."""
    if page == root_doc:
        text[0] += (SITE / "navigation.md").read_text(encoding="utf-8")
    elif page in {"docs/trainers/README", "docs/development/decisions/README"}:
        text[0] += _FOLDER


def setup(app: Sphinx) -> None:
    """Registers what this file adds."""
    app.connect("source-read", add_navigation)
