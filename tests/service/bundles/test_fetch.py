"""`plaudit-fetch`: what is in place afterwards, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import local_hub

from plaudit_service.bundles import hub as service_hub
from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.cli import fetch_main as main

OTHER = "sha256:" + "0" * 64


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_bundle_is_brought_with_its_bytes_and_its_fingerprint_is_printed(tiny_bundle, tmp_path, capsys):
    source, directory = tiny_bundle(), tmp_path / "bundles" / "rm"
    fingerprint = load_bundle(source).fingerprint
    assert main([str(source), str(directory), "--fingerprint", fingerprint]) == 0
    assert capsys.readouterr().out == f"{fingerprint}\n"
    assert names(directory.parent) == ["rm"]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }


def test_a_bundle_comes_from_the_hub(tiny_bundle, tmp_path):
    with local_hub(org__rm=tiny_bundle()) as hub:
        command = [Path(sys.executable).with_name("plaudit-fetch"), "org/rm@v1", tmp_path / "rm"]
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path / "home")}, check=True)
    assert load_bundle(tmp_path / "rm").name == "tiny"


def test_a_bundle_that_is_in_place_is_verified_and_not_brought_again(tiny_bundle, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "rm"
    assert main([str(tiny_bundle()), str(directory)]) == 0
    monkeypatch.setattr(service_hub, "local_directory", None)
    assert main(["org/rm", str(directory)]) == 0
    (directory / "model.onnx").write_bytes(b"")
    assert main(["org/rm", str(directory)]) == 2
    assert "model.onnx has sha256 " in capsys.readouterr().err


def test_links_become_plain_files(tiny_bundle, tmp_path):
    source, links = tiny_bundle(), tmp_path / "links"
    links.mkdir()
    for path in source.iterdir():
        (links / path.name).symlink_to(path)
    assert main([str(links), str(tmp_path / "rm")]) == 0


@pytest.mark.parametrize(
    "damage", ["another fingerprint", "a changed file", "a foreign file", "a folder", "nothing there"]
)
def test_what_is_not_the_bundle_leaves_nothing_behind_and_is_one_line(tiny_bundle, tmp_path, capsys, damage):
    source, directory = tiny_bundle(), tmp_path / "bundles" / "rm"
    flags, message = [], f"bundle {source}: "
    if damage == "another fingerprint":
        flags, message = ["--fingerprint", OTHER], f", not {OTHER} as asked for; "
    elif damage == "a changed file":
        (source / "golden.jsonl").write_text("{}")
        message = "golden.jsonl has sha256 "
    elif damage == "a foreign file":
        (source / "weights.bin").write_bytes(b"")
        message = "weights.bin is not in bundle.json"
    elif damage == "a folder":
        (source / "folder").mkdir()
    else:
        source = message = tmp_path / "none"
    assert main([str(source), str(directory), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plaudit-fetch: error: ")
    assert error.count("\n") == 1
    assert str(message) in error
    assert not directory.parent.exists() or names(directory.parent) == []


def test_a_place_that_cannot_be_written_is_one_line(tiny_bundle, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(tiny_bundle()), str(tmp_path / "file" / "rm")]) == 2
    assert capsys.readouterr().err == f"plaudit-fetch: error: {tmp_path}/file/rm: cannot be made (Not a directory)\n"
