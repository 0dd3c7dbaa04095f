"""Every setting, metric, status and problem type is in the docs."""

from dataclasses import fields
from pathlib import Path

import pytest

from plaudit_service import errors
from plaudit_service.metrics import Metrics
from plaudit_service.results import Status
from plaudit_service.settings import Settings, environment_variable

DOCS = Path(__file__).parents[2] / "docs"
SERVICE = (DOCS / "service.md").read_text()
SCORING = (DOCS / "scoring.md").read_text()


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_is_documented_with_flag_variable_and_default(setting):
    default = {"": "none", "()": "none", "False": "false", "True": "true"}.get(str(setting.default), setting.default)
    row = f"| `--{setting.name.replace('_', '-')}` | `{environment_variable(setting.name)}` | {default} |"
    assert row in SERVICE


def test_every_metric_is_documented_and_no_other():
    metrics = [metric for name, metric in vars(Metrics()).items() if name != "registry"]
    names = {metric._name + ("_total" if metric._type == "counter" else "") for metric in metrics}
    assert {line.split("`")[1] for line in SERVICE.splitlines() if line.startswith("| `plaudit_")} == names


def test_every_status_is_documented_and_no_other():
    section = SCORING.split("## Results")[1].split("## Problems")[0]
    assert {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")} == set(Status)


def test_every_problem_type_is_documented_with_its_status_and_no_other():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "slug")]
    documented = {
        tuple(part.strip(" `") for part in line.split("|")[1:3])
        for line in SCORING.splitlines()
        if "`urn:plaudit:" in line
    }
    assert documented == {(str(kind.status), f"urn:plaudit:{kind.slug}") for kind in kinds}
