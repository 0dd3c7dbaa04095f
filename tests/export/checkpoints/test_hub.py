"""Checkpoints and bundles from a hub, by the real commands, against a stand-in on a local socket."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import COMMIT, local_hub

from plaudit_client import RewardClient
from plaudit_service.bundles import hub as service_hub
from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.errors import BundleError

EXPORT = Path(sys.executable).with_name("plaudit-export")
DOWNLOAD = "import sys; from plaudit_service.bundles.hub import local_directory as l; print(l(sys.argv[1]))"


def run(*command: object, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **env})


@pytest.fixture
def repository(causal_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint beside what must not be fetched."""
    path = Path(shutil.copytree(causal_checkpoint, tmp_path / "repository"))
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (path / "README.md").write_text("a model card, which may name the trainer")
    (path / "modeling.py").write_text("raise SystemExit('code ran')")
    (path / "onnx").mkdir()
    (path / "onnx" / "other.safetensors").write_bytes(b"no")
    return path


@pytest.mark.parametrize("revision", [pytest.param("", marks=pytest.mark.slow), "@v1"])
def test_a_checkpoint_on_the_hub_is_exported_with_the_commit_that_it_has(repository, causal_bundle, tmp_path, revision):
    with local_hub(org__tiny=repository) as hub:
        done = run(EXPORT, "checkpoint", f"org/tiny{revision}", tmp_path / "b", env=hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    bundle = load_bundle(tmp_path / "b")
    assert (bundle.manifest.source.id, bundle.manifest.source.revision) == ("org/tiny", COMMIT)
    assert bundle.fingerprint == causal_bundle.bundle.fingerprint
    assert {"model.safetensors", "README.md"} <= set(hub.fetched)
    assert not {"pytorch_model.bin", "modeling.py", "onnx/other.safetensors"} & set(hub.fetched)


def test_a_head_in_a_pickle_of_the_hubs_is_refused_though_it_is_not_downloaded(repository, tmp_path):
    (repository / "reward_head.bin").write_bytes(b"\x80\x04.")
    with local_hub(org__tiny=repository) as hub:
        done = run(EXPORT, "checkpoint", "org/tiny", tmp_path / "b", env=hub.environment(tmp_path / "home"))
        assert done.returncode == 2
        assert (
            "reward_head.bin is pickled, and never loaded because a pickle can run code; if you trust it"
            in (done.stderr.splitlines()[-1])
        )
        assert not {"pytorch_model.bin", "reward_head.bin"} & set(hub.fetched)


@pytest.mark.slow
def test_a_hub_that_cannot_be_asked_for_its_files_is_told(repository, tmp_path):
    with local_hub(org__tiny=repository) as hub:
        env = hub.environment(tmp_path / "home")
        assert run(EXPORT, "checkpoint", "org/tiny", tmp_path / "b", env=env).returncode == 0
    done = run(EXPORT, "checkpoint", "org/tiny", tmp_path / "c", env=env | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert "note: the hub cannot be reached, so only the cached files of org/tiny were checked" in done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [("org/nothing", "404|Repository Not Found"), ("org/tiny@v9", "404|Revision Not Found")],
)
def test_what_the_hub_does_not_have_is_one_line(repository, tmp_path, source, message):
    with local_hub(org__tiny=repository) as hub:
        done = run(EXPORT, "checkpoint", source, tmp_path / "b", env=hub.environment(tmp_path / "home"))
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith(
        f"plaudit-export: error: {source}: no such directory, and it cannot be downloaded from the hub: "
    )
    assert any(part in error for part in message.split("|"))
    assert not (tmp_path / "b").exists()


def test_a_bundle_on_the_hub_becomes_a_directory_of_the_files_that_its_manifest_names(causal_bundle, tmp_path):
    repository = Path(shutil.copytree(causal_bundle.bundle.path, tmp_path / "repository"))
    (repository / "README.md").write_text("a model card")
    (repository / "model.onnx.data").write_bytes(b"weights that no hash covers")
    with local_hub(org__rm=repository) as hub:
        env = hub.environment(tmp_path / "home")
        done = run(sys.executable, "-c", DOWNLOAD, "org/rm@v1", env=env)
        assert done.returncode == 0, done.stderr
        num_fetched = len(hub.fetched)
        again = run(sys.executable, "-c", DOWNLOAD, "org/rm", env=env)
    assert again.stdout == done.stdout
    assert sorted(hub.fetched) == sorted(path.name for path in causal_bundle.bundle.path.iterdir())
    assert len(hub.fetched) == num_fetched
    directory = Path(done.stdout.strip())
    assert (directory.parent.name, directory.name) == ("org--rm", COMMIT)
    assert load_bundle(directory).fingerprint == causal_bundle.bundle.fingerprint


def test_a_bundle_whose_files_are_not_those_of_its_manifest_is_refused_after_the_download(causal_bundle, tmp_path):
    repository = Path(shutil.copytree(causal_bundle.bundle.path, tmp_path / "repository"))
    (repository / "tokenizer.json").write_text("{}")
    with local_hub(org__rm=repository) as hub:
        done = run(sys.executable, "-c", DOWNLOAD, "org/rm", env=hub.environment(tmp_path / "home"))
    with pytest.raises(BundleError, match=r"tokenizer\.json has sha256"):
        load_bundle(done.stdout.strip())


def test_a_manifest_cannot_have_a_file_of_another_name_fetched(causal_bundle, tmp_path):
    repository = Path(shutil.copytree(causal_bundle.bundle.path, tmp_path / "repository"))
    manifest = json.loads((repository / "bundle.json").read_text())
    manifest["sha256"]["../secret"] = "0" * 64
    (repository / "bundle.json").write_text(json.dumps(manifest))
    with local_hub(org__rm=repository) as hub:
        done = run(sys.executable, "-c", DOWNLOAD, "org/rm", env=hub.environment(tmp_path / "home"))
    assert done.returncode == 1
    assert hub.fetched == ["bundle.json"]


def test_a_manifest_of_any_size_is_not_read_into_memory(causal_bundle, tmp_path):
    repository = Path(shutil.copytree(causal_bundle.bundle.path, tmp_path / "repository"))
    os.truncate(repository / "bundle.json", 2 << 20)
    with local_hub(org__rm=repository) as hub:
        done = run(sys.executable, "-c", DOWNLOAD, "org/rm", env=hub.environment(tmp_path / "home"))
    assert "bundle.json has 2097152 bytes, limit 1048576" in done.stderr
    assert hub.fetched == ["bundle.json"]


def test_a_directory_is_itself_and_a_path_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(service_hub, "_download", None)
    assert service_hub.local_directory(str(tmp_path)) == tmp_path
    for path in ("./runs/bundle", "/runs/bundle", "bundle", "a/b/c", "../x"):
        assert service_hub.local_directory(path) == Path(path)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BundleError, match="org/rm: no such directory, and it cannot be downloaded from the hub: "
    ) as raised:
        service_hub.local_directory("org/rm")
    assert "\n" not in str(raised.value)


def test_a_bundle_on_the_hub_is_served(serve, tiny_bundle, tmp_path):
    with (
        local_hub(org__rm=tiny_bundle()) as hub,
        serve(Path("org/rm@v1"), env=hub.environment(tmp_path / "home")) as service,
        RewardClient(service.url) as client,
    ):
        assert client.score(["good fine"]).floats == [1.5]
