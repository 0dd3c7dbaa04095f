"""Draws the `mermaid` blocks of pages as SVG while the site is built.

It needs no script in the browser, no other program and no network. GitHub draws the same blocks by itself.
"""

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Mermaid(SphinxDirective):
    """A block of text that becomes a picture."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The diagram as one raw node."""
        source = "\n".join(self.content)
        svg = mermaidx.Diagram(source).svg()
        return [nodes.raw("", f'<figure class="diagram">{svg}</figure>', format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive under the name of the blocks."""
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
