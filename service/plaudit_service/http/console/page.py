"""The console's page and the headers that fence it in. Knows nothing of scores: the page's script asks the routes.

Style and script stand inside of the page, and the content security policy names their hashes: nothing else runs in it,
nothing is loaded from another host, and no other page can frame it.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PATHS = ("/", "/console")

_FOLDER = Path(__file__).parent
_STYLES = ("look.css", "console.css")
_SCRIPTS = (
    "dom.js",
    "service_calls.js",
    "charts.js",
    "scored_text.js",
    "compare.js",
    "rows.js",
    "sweep.js",
    "watch.js",
    "start.js",
)


@cache
def console_page() -> tuple[bytes, Mapping[str, str]]:
    """The page as UTF-8, and its headers; the same bytes for every request, since it holds no data."""
    style, script = _joined(_STYLES), _joined(_SCRIPTS)
    # Nothing is escaped: style and script are files of ours, and no text of anybody else's goes into the page.
    environment = Environment(loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, autoescape=False)  # noqa: S701
    page = environment.get_template("page.html").render(style=style, script=script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_source(style)}",
            f"script-src {_source(script)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
    return page.encode(), headers


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _source(text: str) -> str:
    """What a content security policy calls the one inline element with this text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
