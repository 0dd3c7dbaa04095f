"""Checkpoints of policy and critic from a hub, against a stand-in on a local socket."""

from pathlib import Path

import huggingface_hub
import pytest
from local_hub import COMMIT, local_hub

from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.models.places import config_directory, hub_commit, keep_commit, local_directory, pin
from plaudit_ppo.models.policy import load_policy

OTHER = "0" * 40


@pytest.fixture
def repository(policy, tokenizer, tmp_path):
    """A checkpoint beside what must not be fetched."""
    path = tmp_path / "repository"
    policy.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (path / "modeling.py").write_text("raise SystemExit('code ran')")
    (path / "onnx").mkdir()
    (path / "onnx" / "other.safetensors").write_bytes(b"no")
    return path


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    """The hub of this process, with an empty cache."""
    with local_hub(org__tiny=repository) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (huggingface_hub.constants, huggingface_hub.file_download):  # before 1.0 the latter has a copy
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        yield hub


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_a_policy_on_the_hub_is_loaded_from_the_commit_that_it_has_without_pickles_and_code(hub, policy, revision):
    source = pin(f"org/tiny{revision}", "policy")
    assert source == f"org/tiny@{COMMIT}"
    loaded, _ = load_policy(local_directory(source, "policy"))
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    assert "model.safetensors" in hub.fetched
    assert not {"pytorch_model.bin", "modeling.py", "onnx/other.safetensors"} & set(hub.fetched)


def test_of_a_policy_that_is_only_planned_the_config_alone_is_fetched(hub):
    assert (config_directory("org/tiny@v1", "policy") / "config.json").is_file()
    assert hub.fetched == ["config.json"]


@pytest.mark.parametrize("source", ["org/none", "org/tiny@none"])
def test_what_the_hub_does_not_have_is_one_line(hub, source):
    for ask in (pin, config_directory):
        with pytest.raises(
            CheckpointError, match=r"no such directory, and it cannot be downloaded from the hub: "
        ) as raised:
            ask(source, "policy")
        assert str(raised.value).startswith(f"policy: {source}: no such directory")
        assert "\n" not in str(raised.value)


def test_a_repository_without_a_config_is_no_checkpoint(hub, repository):
    (repository / "config.json").unlink()
    for ask in (pin, config_directory):
        with pytest.raises(CheckpointError, match=r"critic: org/tiny: has no config\.json; give the id of a Hugging"):
            ask("org/tiny", "critic")


def test_a_checkpoint_of_pickles_alone_is_refused_without_fetching_them(hub, repository):
    (repository / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_policy(local_directory(pin("org/tiny", "policy"), "policy"))
    assert "pytorch_model.bin" not in hub.fetched


def test_a_directory_is_first_and_a_path_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    Path("org/tiny").mkdir(parents=True)
    for path in ("org/tiny", "./runs/sft", "/runs/sft", "sft", "a/b/c", "../x", str(tmp_path)):
        assert pin(path, "policy") == path
        assert local_directory(path, "policy") == config_directory(path, "policy") == Path(path)


@pytest.mark.parametrize(
    ("now", "before", "taken"),
    [
        ("org/tiny", f"org/tiny@{COMMIT}", f"org/tiny@{COMMIT}"),
        ("org/tiny@v1", f"org/tiny@{COMMIT}", f"org/tiny@{COMMIT}"),
        (f"org/tiny@{OTHER}", f"org/tiny@{COMMIT}", f"org/tiny@{OTHER}"),
        ("org/other@v1", f"org/tiny@{COMMIT}", "org/other@v1"),
        ("models/sft", "models/sft", "models/sft"),
        ("/models/sft", f"org/tiny@{COMMIT}", "/models/sft"),
        (None, f"org/tiny@{COMMIT}", None),
        ("org/tiny", None, "org/tiny"),
    ],
)
def test_a_resumed_run_takes_the_commit_that_it_began_with(now, before, taken):
    assert keep_commit(now, before) == taken


def test_a_commit_is_told_from_a_branch_and_a_directory():
    assert hub_commit(f"org/tiny@{COMMIT}") == ("org/tiny", COMMIT)
    assert [hub_commit(each) for each in ("org/tiny@v1", "org/tiny", "/models/sft", None)] == [None] * 4
