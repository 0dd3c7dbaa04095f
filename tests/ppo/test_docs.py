"""The pages of PPO against the code."""

import dataclasses
import re
from pathlib import Path

import pytest
from pages import assert_leads_somewhere, name_in, names_in, rows, stated

from plaudit_ppo import errors
from plaudit_ppo.config import PPOConfig
from plaudit_ppo.settings_text import load_config, settings_help
from plaudit_ppo.training.metrics import METRICS

TESTS = Path(__file__).parents[1]
DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "ppo-reference.md").read_text()
TEXT = "\n".join((DOCS / f"{page}.md").read_text() for page in ("ppo", "ppo-reference"))
DETAILS = rows((DOCS / "ppo-details.md").read_text(), "no.", "detail", "setting", "default", "source")
TESTED = rows((DOCS / "development" / "ppo-details.md").read_text(), "no.", "detail", "test")


def defaults():
    """The default of each setting, as its help states it."""
    settings = re.findall(r"^  (\w+) = (.*)$", settings_help(), re.MULTILINE)
    assert len(settings) == len(dataclasses.fields(PPOConfig))
    return {name: stated(default) for name, default in settings}


def test_the_example_is_loaded_and_names_every_setting_with_its_default(tmp_path):
    example = re.search(r"```toml\n(.*?)```", REFERENCE, re.DOTALL)[1]
    (tmp_path / "run.toml").write_text(example)
    config = load_config(tmp_path / "run.toml")
    assert set(re.findall(r"^(\w+) = ", example, re.MULTILINE)) == {field.name for field in dataclasses.fields(config)}
    example_only = {"policy", "critic", "prompts", "scorer_urls", "critic_learning_rate", "score_clip", "kl_budget"}
    example_only |= {"clip_range_high", "dual_clip", "ratio_tolerance", "sampling_tolerance", "deepspeed_config"}
    example_only |= {"engine_sync_dir", "engine_key_file", "label_column"}
    assert dataclasses.replace(config, **{name: PPOConfig.__dict__[name] for name in example_only}) == PPOConfig()


def test_every_setting_stands_in_a_table_once_with_its_default_and_no_other_does():
    table = rows(TEXT, "setting", "default", "meaning")
    documented = [(name_in(row["setting"]), stated(row["default"])) for row in table]
    assert sorted(documented, key=str) == sorted(defaults().items(), key=str)


def test_every_detail_names_settings_with_their_defaults():
    for row in DETAILS:
        if row["setting"] != "-":
            for setting, default in zip(names_in(row["setting"]), row["default"].split(", "), strict=True):
                assert stated(default) == defaults()[setting]


def test_every_detail_names_a_test_that_exists():
    assert [row["no."] for row in TESTED] == [row["no."] for row in DETAILS]
    for row in TESTED:
        assert names_in(row["test"]), row["no."]
        for named in names_in(row["test"]):
            file, test = named.split("::")
            assert any(f"def {test}(" in path.read_text() for path in TESTS.rglob(file)), named


@pytest.mark.parametrize("number", range(1, 40))
def test_every_detail_has_a_row_and_a_test_that_says_its_number(number):
    assert str(number) in [row["no."] for row in DETAILS]
    files = [*(TESTS / "ppo").rglob("test_*.py"), *(TESTS / "e2e").glob("test_ppo_*.py")]
    assert any(re.search(rf'"""Details? [^:."]*\b{number}\b', file.read_text()) for file in files)


def test_every_guard_is_documented_with_its_setting():
    guards = {name_in(row["error"]): names_in(row["setting"]) for row in rows(TEXT, "guard", "setting", "error")}
    assert guards.keys() == {error.__name__ for error in errors.GuardError.__subclasses__()}
    settings = {setting for names in guards.values() for setting in names}
    assert settings <= {field.name for field in dataclasses.fields(PPOConfig)}


def test_what_a_run_leaves_is_documented(make_trainer, tmp_path):
    make_trainer(iterations=1).train()
    left = {entry.name + "/" * entry.is_dir() for entry in (tmp_path / "run").iterdir()}
    documented = {name_in(row["path"]) for row in rows(TEXT, "path", "what")}
    assert documented == left | {"adapter/", "engine/", "evaluations.jsonl", "trackers/", "report.html"}


def test_every_link_of_the_troubleshooting_page_leads_somewhere():
    page = Path(__file__).parents[2] / "docs" / "ppo-troubleshooting.md"
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert_leads_somewhere(page, link)
    assert_leads_somewhere(page.with_name("ppo.md"), "ppo-troubleshooting.md")


def test_the_troubleshooting_page_names_settings_and_metrics_that_exist():
    text = (Path(__file__).parents[2] / "docs" / "ppo-troubleshooting.md").read_text()
    for metric in re.findall(r"`((?:val|objective|scoring|policy|tokens)/\w+)`", text):
        assert metric in METRICS
    settings = {field.name for field in dataclasses.fields(PPOConfig)}
    for setting in re.findall(r"`(\w+) = [^`]*`", text):
        assert setting in settings
