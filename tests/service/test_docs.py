"""Every setting, metric, status and problem type is in the docs."""

from dataclasses import fields
from pathlib import Path

from pages import name_in, rows, stated
from scraped import service_metrics

from plaudit_service import errors
from plaudit_service.results import Status
from plaudit_service.settings import Settings, environment_variable

DOCS = Path(__file__).parents[2] / "docs"
SERVICE = (DOCS / "service.md").read_text()
SCORING = (DOCS / "scoring.md").read_text()


def shown(default):
    """A default as an operator would write it."""
    return {"": "none", "()": "none", "False": "false", "True": "true", "None": "by device"}.get(
        str(default), str(default)
    )


def test_every_setting_is_documented_with_flag_variable_and_default_and_no_other():
    documented = [
        (name_in(row["flag"]), name_in(row["variable"]), stated(row["default"]))
        for row in rows(SERVICE, "flag", "variable", "default")
    ]
    settings = [
        (f"--{setting.name.replace('_', '-')}", environment_variable(setting.name), stated(shown(setting.default)))
        for setting in fields(Settings)
    ]
    assert sorted(documented, key=str) == sorted(settings, key=str)


def test_every_metric_is_documented_with_its_type_and_no_other():
    documented = {name_in(row["metric"]): row["type"] for row in rows(SERVICE, "metric", "type")}
    assert documented == service_metrics()


def test_every_status_is_documented_and_no_other():
    section = SCORING.split("## Results")[1].split("## Problems")[0]
    assert {name_in(row["status"]) for row in rows(section, "status")} == set(Status)


def test_every_problem_type_is_documented_with_its_status_and_no_other():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "slug")]
    documented = {(row["status"], name_in(row["type"])) for row in rows(SCORING, "status", "type")}
    assert documented == {(str(kind.status), f"urn:plaudit:{kind.slug}") for kind in kinds}
