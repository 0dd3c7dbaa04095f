"""The dashboard of deploy/grafana, as far as it can be told without Grafana. Its queries are run by the slow tests."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "grafana"
TEXT = (FOLDER / "dashboards" / "plaudit.json").read_text()
DASHBOARD = json.loads(TEXT)
ROWS = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


def expressions(panel):
    return [target["expr"] for target in panel["targets"]]


def test_the_file_is_written_as_grafana_exports_it_so_that_a_change_is_a_small_diff():
    assert json.dumps(DASHBOARD, indent=2) + "\n" == TEXT


def test_the_rows_are_those_of_the_service_and_of_the_trainer():
    assert [row["title"] for row in ROWS] == [
        "Requests, errors, latency", "Queue, batches, padding, sharing", "Scores", "Process",
        "Engines behind HTTP", "Trainer",
    ]  # fmt: skip


def test_data_source_service_and_model_are_variables_and_every_variable_is_used():
    assert VARIABLES.keys() == {"datasource", "job", "model"}
    assert VARIABLES["datasource"]["query"] == "prometheus"
    used = {name for panel in PANELS for text in expressions(panel) for name in re.findall(r"\$(\w+)", text)}
    assert used == {"job", "model", "__rate_interval"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_the_chosen_data_source_and_says_what_it_shows(panel):
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEF")[: len(panel["targets"])]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_query_is_of_the_chosen_service_or_of_the_trainers(panel):
    series = re.findall(r"\b(?:\w+:)?(?:plaudit|process)_\w+(?::\w+)?(?:\{[^}]*\})?", " ".join(expressions(panel)))
    assert [one for one in series if "plaudit_ppo_" not in one and 'job=~"$job"' not in one] == []


def test_the_trainers_row_shows_the_exposed_wait_beside_the_queue_time():
    (panel,) = [panel for panel in PANELS if panel["title"] == "Exposed wait beside queue time"]
    assert panel["gridPos"]["y"] > ROWS[-1]["gridPos"]["y"]
    text = " ".join(expressions(panel))
    assert "plaudit_ppo_scoring_exposed_wait_seconds" in text
    assert "plaudit_queue_seconds_bucket" in text


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert max(place["x"] + place["w"] for place in places) == 24


def test_grafana_finds_the_data_source_and_the_dashboard():
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/plaudit.yml").read_text())["providers"]
    interval = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", interval)
    assert (provider["type"], provider["options"]["path"]) == ("file", "/etc/grafana/dashboards")
