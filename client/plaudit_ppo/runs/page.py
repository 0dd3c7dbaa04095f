"""Pages that show a run: Jinja fills templates that lie beside the modules whose pages they are."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_FRAME = Path(__file__).parent  # of frame.html and parts.html


def render_page(template: Path, **values: Any) -> str:
    """The HTML of a page. Every text is escaped; only charts, which are `Markup`, stay as they are.

    Args:
        template: the file, which may extend `frame.html` and import from `parts.html`.
        values: all that the template names.

    Raises:
        jinja2.UndefinedError: a name has no value.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FRAME]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
