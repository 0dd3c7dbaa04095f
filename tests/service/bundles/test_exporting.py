"""What `plaudit-serve` does with a checkpoint, against a stand-in for `plaudit-export`."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from local_hub import local_hub

from plaudit_service import cli
from plaudit_service.bundles import exporting, hub
from plaudit_service.bundles.exporting import bundle_directories
from plaudit_service.errors import BundleError, ExportFailed, NotExported, SettingsError


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "rm"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Makes a folder of commands the one of this process's Python: `environment("exit 3")` has such an exporter."""

    def make(script: str, *, torch: bool = True, folder: str = "bin") -> Path:
        command = tmp_path / folder / "plaudit-export"
        command.parent.mkdir()
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(command.with_name("python")))
        monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: {"torch": torch}[name] or None)
        return command

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return make


def test_the_exporter_gets_the_checkpoint_with_the_options_and_says_where_the_bundle_is(
    environment, checkpoint, tiny_bundle, tmp_path
):
    bundle = tiny_bundle()
    environment(f'printf "%s\\n" "$@" > {tmp_path}/arguments; echo a line of some library; echo {tmp_path}/kept')
    options = ("append-eos", "max-tokens=2048")
    assert bundle_directories([str(bundle), str(checkpoint)], options, "/var/cache/plaudit") == [
        bundle,
        tmp_path / "kept",
    ]
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "cache",
        "--append-eos",
        "--max-tokens=2048",
        "--cache",
        "/var/cache/plaudit",
        "--",
        str(checkpoint),
    ]


def test_a_repository_of_the_hub_without_a_manifest_is_a_checkpoint_also_where_the_hub_is_not_asked(
    environment, checkpoint, tmp_path
):
    identify = "import sys; from plaudit_service.bundles.hub import local_directory as l; l(sys.argv[1])"
    command = [sys.executable, "-c", identify, "org/rm@v1"]
    with local_hub(org__rm=checkpoint) as local:
        env = {**os.environ, **local.environment(tmp_path / "home")}
        online = subprocess.run(command, capture_output=True, text=True, env=env)
    offline = subprocess.run(command, capture_output=True, text=True, env={**env, "HF_HUB_OFFLINE": "1"})
    message = (
        "NotExported: bundle org/rm@v1: holds no bundle.json; make a bundle of the checkpoint with `plaudit-export "
    )
    assert message in online.stderr
    assert message in offline.stderr
    assert local.fetched == []


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("exit 2", BundleError, "cannot be exported; plaudit-export gives the reason above. An option"),
        ("exit 1", ExportFailed, "cannot be exported; plaudit-export gives the reason above. An option"),
        (
            "kill -KILL $$",
            ExportFailed,
            "plaudit-export was ended by SIGKILL; check that the machine has enough memory for it",
        ),
    ],
)
def test_what_the_exporter_ends_with_is_what_the_command_ends_with(environment, checkpoint, script, error, message):
    environment(script)
    with pytest.raises(error, match=message) as raised:
        bundle_directories([str(checkpoint)], (), "")
    assert raised.value.exit_code == (2 if error is BundleError else 1)


def test_what_a_failed_export_has_measured_is_shown(environment, checkpoint, capfd):
    environment("echo a table; echo plaudit-export: error: the reason >&2; exit 1")
    with pytest.raises(ExportFailed):
        bundle_directories([str(checkpoint)], (), "")
    assert capfd.readouterr().err == "plaudit-export: error: the reason\na table\n"


def test_without_torch_beside_it_the_exporter_is_one_on_path_or_there_is_none(
    environment, checkpoint, tmp_path, monkeypatch
):
    other = environment(f"echo {tmp_path}/of-another-environment", folder="other")
    beside = environment("echo not this one", torch=False)
    monkeypatch.setenv("PATH", f"{other.parent}:{os.environ['PATH']}")
    assert bundle_directories([str(checkpoint)], (), "") == [tmp_path / "of-another-environment"]
    for path in (beside.parent, tmp_path):
        monkeypatch.setenv("PATH", str(path))
        with pytest.raises(BundleError, match=r"rm: holds no bundle\.json, and a checkpoint has .*'plaudit\[export\]'"):
            bundle_directories([str(checkpoint)], (), "")


@pytest.mark.parametrize(("on_signal", "code"), [("exit 130", 130), ("", -signal.SIGKILL)])
def test_an_export_that_is_not_wanted_any_more_clears_up_or_is_killed(monkeypatch, on_signal, code):
    if not on_signal:
        monkeypatch.setattr(exporting, "_GRACE_S", 0.1)
    script = f"trap '{on_signal}' TERM; echo runs; while :; do sleep 0.05; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "runs\n"
        exporting._end(process)
        assert process.returncode == code


def test_options_of_an_export_without_anything_to_export_are_refused(tiny_bundle):
    with pytest.raises(SettingsError, match="--export-options append-eos: nothing is exported"):
        bundle_directories([str(tiny_bundle())], ("append-eos",), "")


def test_a_checkpoint_is_known_by_its_config_and_a_bundle_by_its_manifest(checkpoint, tiny_bundle, tmp_path):
    with pytest.raises(
        NotExported, match=f"bundle {checkpoint}: holds no bundle.json; make a bundle of the checkpoint"
    ):
        hub.local_directory(str(checkpoint))
    shutil.move(checkpoint / "config.json", checkpoint / "adapter_config.json")
    with pytest.raises(NotExported):
        hub.local_directory(str(checkpoint))
    bundle = tiny_bundle()
    (bundle / "config.json").write_text("{}")
    assert hub.local_directory(str(bundle)) == bundle
    (tmp_path / "neither").mkdir()
    assert hub.local_directory(str(tmp_path / "neither")) == tmp_path / "neither"


def test_plaudit_fetch_names_the_command_that_makes_a_bundle_of_a_checkpoint(checkpoint, tmp_path, capsys):
    assert cli.fetch_main([str(checkpoint), str(tmp_path / "there")]) == 2
    assert f"make a bundle of the checkpoint with `plaudit-export checkpoint {checkpoint} BUNDLE`\n" in (
        capsys.readouterr().err
    )
