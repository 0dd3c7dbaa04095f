"""Every status of a sequence is in the docs."""

from pathlib import Path

from pages import name_in, rows

from plaudit_service.results import Status

SCORING = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()


def test_every_status_is_documented_and_no_other():
    assert {name_in(row["status"]) for row in rows(SCORING, "status", "meaning")} == set(Status)
