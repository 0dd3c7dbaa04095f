"""The frame of a page that shows a run: one HTML file that loads nothing from anywhere."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

_DOCUMENT = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark;
  --ground: #fdfdfc; --ink: #22262a; --soft: #626a72; --line: #dcdfe2; --card: #f4f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16191c; --ink: #e4e6e8; --soft: #9aa2aa; --line: #33393f; --card: #1e2226; }
}
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 62rem; }
.soft, figcaption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card span { display: block; font-size: .85rem; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1.6rem 1.4rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; margin: .3rem 0; }
figcaption { font-size: .88rem; }
.scroll { overflow-x: auto; }
.scroll + h3 { margin-top: 1.4rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12rem; }
@media (max-width: 40rem) { td.text { min-width: 6rem; } table { font-size: .8rem; } }
td.label { color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.prompt td { font-weight: 600; border-bottom: 0; padding-top: 1rem; }
tr.first td { border-bottom: 0; }
table.narrow { width: auto; min-width: 22rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$heading</h1>
<p class="soft">$subtitle</p>
$body</body>
</html>
""")


def make_document(*, title: str, heading: str, subtitle: str, body: str) -> str:
    """A whole page.

    Args:
        title: text of the browser's tab.
        heading: text.
        subtitle: text.
        body: HTML.
    """
    return _DOCUMENT.substitute(title=escape(title), heading=escape(heading), subtitle=escape(subtitle), body=body)


def make_card(figure: str, label: str) -> str:
    """One number and what it is."""
    return f'<div class="card"><b>{escape(figure)}</b><span>{escape(label)}</span></div>'


def make_figure(title: str, svg: str, caption: str) -> str:
    """A chart with its title and caption."""
    return f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def make_rows(rows: Iterable[Sequence[str]]) -> str:
    """The rows of a table of names and values."""
    return "".join(f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>' for name, value in rows)
