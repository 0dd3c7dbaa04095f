"""`plaudit-serve` on a checkpoint, from the hub and from a directory, with the real exporter."""

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from local_hub import COMMIT, local_hub

from plaudit_client import RewardClient
from plaudit_export.testing import tiny_encoder_checkpoint

SERVE = str(Path(sys.executable).with_name("plaudit-serve"))
EXPORTS = "plaudit-export: tracing "


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint beside what must not be fetched."""
    path = tiny_encoder_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-bert")
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (path / "modeling.py").write_text("raise SystemExit('code ran')")
    return path


def source_of(service):
    (model,) = httpx2.get(f"{service.url}/info").json()["models"]
    return model["manifest"]["source"]["id"], model["manifest"]["source"]["revision"]


def libraries_of(process):
    """The shared libraries that a process has loaded."""
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in maps if ".so" in line}


@pytest.mark.slow
def test_two_services_at_once_export_a_checkpoint_of_the_hub_once_and_a_third_not_at_all(serve, checkpoint, tmp_path):
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    cache = tmp_path / "cache"
    flags = ["--export-cache", str(cache), "--export-options", "max-tokens=100"]

    def start(log):
        return stack.enter_context(serve("org/rm@v1", flags=flags, env=env, log=log, timeout_s=900))

    with local_hub(org__rm=checkpoint) as hub, ExitStack() as stack:
        env = hub.environment(tmp_path / "home")
        with ThreadPoolExecutor() as pool:
            services = list(pool.map(start, logs[:2]))
        fetched = list(hub.fetched)
        services.append(start(logs[2]))
        assert hub.fetched == fetched
        texts = ["The quick brown fox", "a"]
        scores = []
        for service in services:
            with RewardClient(service.url) as client:
                scores.append(client.score(texts))
        assert scores[0].floats == scores[1].floats == scores[2].floats
        assert [source_of(service) for service in services] == [("org/rm", COMMIT)] * 3
        loaded = libraries_of(services[0].process)
    said = [log.read_text() for log in logs]
    assert sum(EXPORTS in text for text in said[:2]) == 1
    assert EXPORTS not in said[2]
    (folder,) = cache.iterdir()
    assert all(
        f"plaudit-export: using {folder}/bundle, which was exported before" in text
        for text in said
        if EXPORTS not in text
    )
    assert any(name.startswith("onnxruntime") for name in loaded)
    assert not [name for name in loaded if "torch" in name]
    assert "model.safetensors" in fetched
    assert not {"pytorch_model.bin", "modeling.py"} & set(fetched)
    assert json.loads((folder / "bundle" / "bundle.json").read_text())["scoring"]["max_tokens"] == 100


def test_sigterm_ends_the_export_too_and_leaves_nothing_half(checkpoint, tmp_path):
    command = [SERVE, str(checkpoint), "--port", "0", "--export-cache", str(tmp_path / "cache")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "golden texts with transformers" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=300)  # the exporter writes to it, too: it has ended
    assert process.returncode == 0
    assert "plaudit-export: interrupted" in said
    (folder,) = (tmp_path / "cache").iterdir()
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_what_cannot_be_exported_ends_in_the_exporters_reason_and_exit_code_2(checkpoint, tmp_path):
    pickled = Path(shutil.copytree(checkpoint, tmp_path / "pickled"))
    (pickled / "model.safetensors").unlink()
    command = [SERVE, str(pickled), "--port", "0", "--export-cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    reason, last = done.stderr.splitlines()[-2:]
    assert reason.startswith(f"plaudit-export: error: {pickled}: pytorch_model*.bin is pickled, and never loaded")
    assert last == (
        f"plaudit-serve: error: bundle {pickled}: cannot be exported; plaudit-export gives the reason above. An option "
        "that it names goes into --export-options without its --, as in --export-options recipe=trl"
    )


def test_options_that_the_exporter_does_not_know_are_refused(checkpoint, tmp_path):
    command = [SERVE, str(checkpoint), "--port", "0", "--export-cache", str(tmp_path / "cache")]
    done = subprocess.run([*command, "--export-options", "append-bos"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "plaudit-export: error: unrecognized arguments: --append-bos; see plaudit-export" in done.stderr
