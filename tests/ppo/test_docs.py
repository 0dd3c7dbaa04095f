"""docs/ppo.md against the code."""

import dataclasses
import re
from pathlib import Path

import pytest

from plaudit_ppo import errors
from plaudit_ppo.config import PPOConfig, load_config, settings_help
from plaudit_ppo.training.metrics import METRICS

TESTS = Path(__file__).parents[1]
TEXT = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if line.startswith("| ")]
DETAILS = [row for row in ROWS if len(row) == 6 and row[0].isdigit()]


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def settings_with_defaults():
    for row in DETAILS:
        yield from zip(quoted(row[2]), row[3].split(", "), strict=True) if quoted(row[2]) else ()
    for row in ROWS:
        if len(row) == 3 and quoted(row[0]) and quoted(row[0])[0] in PPOConfig.__dataclass_fields__:
            yield quoted(row[0])[0], row[1]


def test_the_example_is_loaded_and_names_every_setting_with_its_default(tmp_path):
    example = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1]
    (tmp_path / "run.toml").write_text(example)
    config = load_config(tmp_path / "run.toml")
    assert set(re.findall(r"^(\w+) = ", example, re.MULTILINE)) == {field.name for field in dataclasses.fields(config)}
    example_only = {"policy", "critic", "prompts", "scorer_urls", "critic_learning_rate", "score_clip", "kl_budget"}
    example_only |= {"ratio_tolerance", "sampling_tolerance", "deepspeed_config"}
    assert dataclasses.replace(config, **{name: PPOConfig.__dict__[name] for name in example_only}) == PPOConfig()


def test_every_setting_stands_in_a_table_once_with_its_default():
    documented = list(settings_with_defaults())
    assert sorted(name for name, _ in documented) == sorted(field.name for field in dataclasses.fields(PPOConfig))
    for name, default in documented:
        assert f"  {name} = {default.strip('`')}\n" in settings_help()


def test_every_detail_names_a_test_that_exists():
    names = [name for row in DETAILS for name in quoted(row[5])]
    assert len(names) >= len(DETAILS)
    for name in names:
        file, test = name.split("::")
        folder = TESTS if (TESTS / file).exists() else TESTS / "ppo"
        assert f"def {test}(" in (folder / file).read_text()


@pytest.mark.parametrize("number", range(1, 29))
def test_every_detail_has_a_row_and_a_test_that_says_its_number(number):
    assert str(number) in [row[0] for row in DETAILS]
    files = [*(TESTS / "ppo").rglob("test_*.py"), *(TESTS / "e2e").glob("test_ppo_*.py")]
    assert any(re.search(rf'"""Details? [^:."]*\b{number}\b', file.read_text()) for file in files)


def test_every_guard_is_documented_with_its_setting():
    rows = {quoted(row[2])[0]: row[1] for row in ROWS if len(row) == 3 and quoted(row[2]) and "Error" in row[2]}
    assert rows.keys() == {error.__name__ for error in errors.GuardError.__subclasses__()}
    settings = {name for cell in rows.values() for name in quoted(cell)}
    assert settings <= PPOConfig.__dataclass_fields__.keys()


def test_every_metric_is_documented_with_its_meaning():
    lines = re.findall(
        r"^\| `(\S+)` \| (.*) \|$", TEXT.partition("## Metrics")[2].partition("## Errors")[0], re.MULTILINE
    )
    assert dict(lines) == METRICS


def test_what_a_run_leaves_is_documented(make_trainer, tmp_path):
    make_trainer(iterations=1).train()
    left = {entry.name + "/" * entry.is_dir() for entry in (tmp_path / "run").iterdir()}
    documented = {quoted(row[0])[0] for row in ROWS if len(row) == 2 and quoted(row[0])}
    assert documented == left | METRICS.keys() | {"adapter/", "trackers/", "report.html"}


def test_every_error_is_documented_with_its_exit_code():
    rows = {quoted(row[0])[0]: int(row[1]) for row in ROWS if len(row) == 3 and row[1].isdigit()}
    classes = [value for value in vars(errors).values() if isinstance(value, type) and value is not errors.PPOError]
    assert rows == {error.__name__: error.exit_code for error in classes}
