"""The configuration, rules and alerts of deploy/prometheus, against promtool, the service's code and the runbook."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_process import FASTER, faster
from scraped import service_metrics

from plaudit_ppo.runs.metrics_server import prometheus_name
from plaudit_ppo.training.metrics import METRICS
from plaudit_service import errors
from plaudit_service.http.dialects.endpoint import DIALECTS
from plaudit_service.metrics import SECONDS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = [
    rule
    for path in sorted((FOLDER / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
UNIT_TESTS = [
    case
    for path in (FOLDER / "tests").glob("*.yml")
    for test in yaml.safe_load(path.read_text())["tests"]
    for case in test.get("alert_rule_test", ())
]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text().partition("## Runbook")[2].partition("\n## ")[0]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed; on Debian and Ubuntu: apt-get install prometheus",
)


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_the_configuration_and_all_rules():
    out = promtool("check", "config", FOLDER / "prometheus.yml")
    assert f"{len(ALERTS)} rules found" in out
    assert f"{len(RULES) - len(ALERTS)} rules found" in out


@needs_promtool
@pytest.mark.parametrize("path", sorted((FOLDER / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_every_alert_fires_and_stays_silent_as_its_tests_say(path):
    assert "SUCCESS" in promtool("test", "rules", path)


@pytest.mark.parametrize("alert", sorted({rule["alert"] for rule in ALERTS}))
def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(alert):
    assert {bool(case["exp_alerts"]) for case in UNIT_TESTS if case["alertname"] == alert} == {True, False}


def test_every_alert_leads_to_its_runbook_entry_and_no_entry_is_without_its_alert():
    assert {rule["annotations"]["runbook_url"] for rule in ALERTS} == {
        f"docs/runbook.md#{rule['alert'].lower()}" for rule in ALERTS
    }
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == list(dict.fromkeys(rule["alert"] for rule in ALERTS))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"] + rule["labels"].get("window", ""))
def test_every_alert_says_how_urgent_it_is_and_what_happened(rule):
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"].keys() == {"summary", "runbook_url"}


def test_rules_ask_for_metrics_that_the_service_the_trainer_or_a_rule_makes():
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        asked = set(re.findall(r"[\w:]*plaudit_\w+(?::\w+)?", re.sub(r'"[^"]*"', "", rule["expr"])))
        assert asked <= recorded | service_series() | {prometheus_name(metric) for metric in METRICS}, rule


def test_the_routes_of_the_objectives_are_all_that_score():
    routes = {"/score", *(route.path for routes in DIALECTS.values() for route in routes if route.scores)}
    asked = {group for rule in RULES for group in re.findall(r'route=~"([^"]*)"', rule["expr"])}
    assert [set(group.split("|")) for group in asked] == [routes]


def test_the_outcomes_of_the_objectives_are_outcomes_of_the_service():
    asked = {name for rule in RULES for group in re.findall(r'outcome=~?"([^"]*)"', rule["expr"])
             for name in group.split("|")}  # fmt: skip
    assert asked <= {"ok", "500"} | {kind.slug for kind in errors.RequestError.__subclasses__()}


def test_the_latency_objective_lies_on_an_edge_of_the_histogram_and_stands_in_one_place():
    (edge,) = [edge for rule in RULES for edge in re.findall(r'le="([^"]*)"', rule["expr"])]
    assert float(edge) in SECONDS
    assert edge == str(float(edge))  # as the service writes it


def test_budgets_burn_14_4_times_as_fast_over_an_hour_and_6_times_over_six():
    burns = [rule for rule in ALERTS if "window" in rule["labels"]]
    for rule, (factor, long, short) in zip(burns, [("14.4", "1h", "5m"), ("6", "6h", "30m")] * 2, strict=True):
        assert re.findall(r"ratio_rate(\w+) > ([\d.]+) \*", rule["expr"]) == [(long, factor), (short, factor)]
        assert rule["labels"]["window"] == long
    assert len(burns) == 4


@pytest.mark.parametrize(
    "path", [FOLDER / "prometheus.yml", *sorted((FOLDER / "rules").glob("*.yml"))], ids=lambda p: p.stem
)
def test_the_end_to_end_test_changes_durations_and_nothing_else(path):
    duration = re.compile(r"(?<![\w.:])(\d+)(ms|s|m|h|d)\b")
    text = path.read_text()
    changed = faster(text)
    assert duration.sub("D", changed) == duration.sub("D", text)
    seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    before, after = ([int(n) * seconds[unit] for n, unit in duration.findall(one)] for one in (text, changed))
    assert before
    assert after == pytest.approx([one / FASTER for one in before])


def service_series():
    """All names under which the service's metrics are scraped."""
    suffixes = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    return {name + suffix for name, kind in service_metrics().items() for suffix in suffixes[kind]}
