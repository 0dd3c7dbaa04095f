"""docs/operations.md and docs/runbook.md: flags, settings, metrics, panels and files exist; sizing is the README's."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from pages import names_in, rows
from scraped import service_metrics

from plaudit_client import cli as score_command
from plaudit_export import cli as export_command
from plaudit_ppo import errors as ppo_errors
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.training.metrics import METRICS
from plaudit_service.metrics import SECONDS
from plaudit_service.results import Status
from plaudit_service.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "operations.md", ROOT / "docs" / "runbook.md"]
TEXT = "\n".join(page.read_text() for page in PAGES)
CODE = names_in(TEXT)
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "plaudit.json").read_text())


def named(pattern):
    """Whatever the pages name in code font that matches as a whole."""
    return sorted({found[0] for code in CODE if (found := re.fullmatch(pattern, code))})


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))))
def test_every_flag_exists(flag):
    service = {f"--{setting.name.replace('_', '-')}" for setting in dataclasses.fields(Settings)}
    commands = (score_command.__file__, export_command.__file__, ROOT / "loadtests" / "bench.py")
    other = "".join(Path(command).read_text() for command in commands)
    assert flag in service or f'"{flag}"' in other or flag == "--config"  # of prometheus: --config.file


def test_every_metric_is_one_that_is_made():
    assert set(re.findall(r"(?<![:\w])plaudit_[a-z_]+", TEXT)) <= service_metrics().keys()
    assert set(named(r"(?:objective|policy|loss|val|scoring|eval|tokens|time)/\w+")) <= METRICS.keys()


def test_every_setting_of_the_trainer_exists():
    settings = {field.name for field in dataclasses.fields(PPOConfig)}
    words = {word for word in named(r"[a-z]+(?:_[a-z]+)+") if not word.startswith("plaudit_")}
    assert words >= {"scorer_timeout_s", "metrics_port", "max_masked_share"}
    others = {*Status, "max_tokens", "request_failed", "runbook_url"}  # of results, manifest, log, alerts
    assert words - settings <= others | {"process_open_fds", "process_resident_memory_bytes"}


def test_every_error_and_panel_exists():
    assert set(named(r"[A-Z]\w+Error")) <= set(vars(ppo_errors))
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    panels = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", TEXT))
    assert len(panels) > 8
    assert panels <= titles


@pytest.mark.parametrize("path", named(r"deploy/[\w./*-]+"))
def test_every_path_exists(path):
    assert list(ROOT.glob(path.rstrip("/")))


def test_the_edges_for_the_latency_objective_are_those_of_the_histogram():
    edges = re.search(r"another edge of `plaudit_request_seconds`\s*\(([^)]*)\)", TEXT)[1]
    assert [float(edge) for edge in edges.split(",")] == [edge for edge in SECONDS if edge >= 0.25]
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules/recording.yml").read_text())
    records = [rule["record"] for group in rules["groups"] for rule in group["rules"] if "le=" in rule["expr"]]
    assert records == ["job:plaudit_requests_slow:rate5m"]


def figures(page, *columns):
    """The numbers that the cells of some columns begin with, row by row."""
    return [[float(row[column].split()[0]) for column in columns] for row in rows(page, *columns)]


def test_the_figures_for_sizing_are_half_of_the_readmes():
    readme = (ROOT / "README.md").read_text().partition("## What it costs")[2].partition("\n## ")[0]
    on_two_cores = figures(readme, "service, float32", "service, OpenVINO bfloat16")
    sizing = TEXT.partition("## Sizing")[2].partition("\n## ")[0]
    per_core = figures(sizing, "ONNX Runtime float32", "OpenVINO bfloat16")
    assert len(per_core) == 3
    for measured, stated in zip(on_two_cores, per_core, strict=True):
        assert stated == pytest.approx([figure / 2 for figure in measured], abs=0.051)
    example = re.search(r"(\d+) ÷ \((\d+) \S ([\d.]+)\) = ([\d.]+) cores", sizing)
    rollouts, seconds, rate, cores = map(float, example.groups())
    assert rate == per_core[0][0]
    assert cores == pytest.approx(rollouts / (seconds * rate), abs=0.05)
