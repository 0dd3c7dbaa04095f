"""Which checkpoint a source is, without its weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import COMMIT, LocalHub, local_hub

from plaudit_export.errors import SourceError
from plaudit_export.identity import identify

IDENTIFY = """
import json, sys
from plaudit_export.identity import identify
identity = identify(sys.argv[1])
assert not {"torch", "transformers", "peft"} & sys.modules.keys()
print(json.dumps([identity.source, identity.name, identity.content]))
"""


def run(hub: LocalHub, home: Path, source: str, **more: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **hub.environment(home), **more}
    return subprocess.run([sys.executable, "-c", IDENTIFY, source], capture_output=True, text=True, env=env)


def write(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "model", config__json="{}", model__safetensors="weights", modeling__py="code")


def test_a_directory_is_another_checkpoint_when_its_files_name_another_trainer_and_not_by_other_words(model):
    before = identify(str(model)).content
    (model / "README.md").write_text("a card without a trainer")
    assert identify(str(model)).content == before
    (model / "README.md").write_text("---\ntags:\n- trl\n- reward-trainer\n---\n- TRL: 0.24.0\n")
    named = identify(str(model)).content
    assert named == before | {"trained_by": "README.md names RewardTrainer of TRL 0.24"}


def adapter(directory, base, **more):
    config = json.dumps({"base_model_name_or_path": base, **more})
    return write(directory, adapter_config__json=config, adapter_model__safetensors="a")


def test_a_repository_is_its_commit_and_its_weights_are_not_fetched(model, tmp_path):
    with local_hub(org__rm=model) as hub:
        done = run(hub, tmp_path / "home", "org/rm@v1")
    assert json.loads(done.stdout) == [f"org/rm@{COMMIT}", "org/rm", {"id": "org/rm", "commit": COMMIT}], done.stderr
    assert hub.fetched == ["config.json"]
    offline = run(hub, tmp_path / "home", "org/rm@v1", HF_HUB_OFFLINE="1")
    assert offline.stdout == done.stdout


def test_an_adapter_is_also_the_commit_of_its_base(model, tmp_path):
    repository = adapter(tmp_path / "adapter", "org/base", revision="v1")
    with local_hub(org__adapter=repository, org__base=model) as hub:
        done = run(hub, tmp_path / "home", "org/adapter")
    _, _, content = json.loads(done.stdout)
    assert content == {"id": "org/adapter", "commit": COMMIT, "base": {"id": "org/base", "commit": COMMIT}}
    assert hub.fetched == ["adapter_config.json", "config.json"]


def test_an_adapters_directory_is_also_the_bytes_of_its_base(model, tmp_path):
    directory = adapter(tmp_path / "adapter", "../model")
    before = identify(str(directory))
    assert before.is_adapter
    assert set(before.content["base"]["files"]) == {"config.json", "model.safetensors"}
    (model / "model.safetensors").write_text("other")
    assert identify(str(directory)).content["files"] == before.content["files"]
    assert identify(str(directory)).content != before.content


def test_a_repository_without_a_checkpoint_is_one_line(tmp_path):
    with local_hub(org__data=write(tmp_path / "data", README__md="rows")) as hub:
        done = run(hub, tmp_path / "home", "org/data")
    assert "SourceError: org/data: has no config.json; give the id of a Hugging Face checkpoint" in done.stderr


def test_a_base_that_the_config_does_not_name_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"adapter_config\.json names no base model"):
        identify(str(adapter(tmp_path / "adapter", None)))
