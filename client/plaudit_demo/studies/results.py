"""The result of a study: rows of figures with mean and spread over seeds, as table, JSON lines and page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from plaudit_client.whole_files import write_file
from plaudit_demo.output import write_jsonl
from plaudit_ppo.runs.page import render_page

_PAGE = Path(__file__).with_name("study.html")


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
    figures: Sequence[tuple[str, Markup, str]]
    records: Sequence[Mapping[str, Any]]

    def table(self) -> str:
        """The rows as a Markdown table."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def write(self, directory: Path) -> Path:
        """Write `NAME.jsonl` and `NAME.html`; returns the page's path."""
        write_jsonl(directory / f"{self.name}.jsonl", self.records)
        page = directory / f"{self.name}.html"
        write_file(page, render_page(_PAGE, study=self))
        return page
