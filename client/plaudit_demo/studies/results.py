"""The result of a study: rows of figures with mean and spread over seeds, as table, JSON lines and page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from plaudit_demo.output import write_jsonl
from plaudit_ppo.runs.page import make_document, make_figure


@dataclass(frozen=True)
class Result:
    """What a study found.

    Attributes:
        name: of its files.
        title: one line.
        method: a sentence or two on what was compared and how.
        header: of the table.
        rows: of the table; as many cells each as the header.
        figures: title, SVG and caption of each.
        records: every figure of every seed.
    """

    name: str
    title: str
    method: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[tuple[str, str, str]]
    records: Sequence[Mapping[str, Any]]

    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def write(self, directory: Path) -> Path:
        """Write `NAME.jsonl` and `NAME.html`; returns the page's path."""
        write_jsonl(directory / f"{self.name}.jsonl", self.records)
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        figures = "".join(make_figure(*figure) for figure in self.figures)
        page = directory / f"{self.name}.html"
        page.write_text(
            make_document(
                title=f"plaudit study: {self.name}",
                heading=self.title,
                subtitle=self.method,
                body=f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
                f'<div class="figures">{figures}</div>',
            ),
            encoding="utf-8",
        )
        return page
