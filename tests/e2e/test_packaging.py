"""The wheel in empty environments: what each role of the install needs, and what it must not need."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, or the one that PLAUDIT_WHEEL names: a release is checked in the bytes published."""
    if "PLAUDIT_WHEEL" in os.environ:
        return Path(os.environ["PLAUDIT_WHEEL"])
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (path,) = folder.glob("plaudit-*.whl")
    return path


@pytest.fixture
def environment(tmp_path, wheel):
    """Makes an empty environment with the wheel and an extra; gives its bin folder."""

    def make(extra: str) -> Path:
        venv.create(tmp_path / "venv", with_pip=True)
        bin_folder = tmp_path / "venv" / "bin"
        install = [bin_folder / "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}{extra}"]
        subprocess.run(install, check=True, timeout=900)
        return bin_folder

    return make


def absent(bin_folder, *modules):
    found = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m)])"
    done = subprocess.run([bin_folder / "python", "-c", found], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "[]"


def test_the_wheel_holds_exactly_five_packages_each_typed(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"plaudit_client", "plaudit_demo", "plaudit_export", "plaudit_ppo", "plaudit_service"}
    assert {f"{package}/py.typed" for package in packages} <= set(names)


def test_the_wheel_holds_the_template_of_every_page(wheel):
    templates = {str(path.relative_to(ROOT / "client")) for path in (ROOT / "client").rglob("*.html")}
    assert templates
    assert templates <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_console_whose_style_is_the_reports(wheel):
    folder = ROOT / "service/plaudit_service/http/console"
    held = zipfile.ZipFile(wheel)
    for path in folder.glob("*.*"):
        assert held.read(f"plaudit_service/http/console/{path.name}") == path.read_bytes()
    assert held.read("plaudit_service/http/console/look.css") == held.read("plaudit_ppo/runs/look.css") != b""


def test_the_base_install_is_the_client_alone(environment, tmp_path):
    bin_folder = environment("")
    subprocess.run([bin_folder / "python", "-c", "import plaudit_client"], check=True)
    assert absent(bin_folder, "torch", "numpy", "fastapi", "transformers", "onnxruntime", "pydantic")
    (tmp_path / "ppo.toml").write_text('policy = "p"\nprompts = "p.jsonl"\nscorer_urls = ["http://127.0.0.1:1"]\n')
    commands = [
        ("service", "plaudit-serve", "bundle"),
        ("service", "plaudit-fetch", "bundle", "directory"),
        ("export", "plaudit-export", "checkpoint", "checkpoint", "bundle"),
        ("train", "plaudit-ppo", "train", "--config", "ppo.toml"),
        ("demo,export", "plaudit-demo"),
    ]
    for extra, command, *arguments in commands:
        done = subprocess.run([bin_folder / command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        error = done.stderr.splitlines()[-1]
        assert error.startswith(f"{command}: error: ")
        assert error.endswith(f"pip install 'plaudit[{extra}]'")
        assert "Traceback" not in done.stderr


def test_a_service_install_serves_a_bundle_without_torch_and_transformers(environment, causal_bundle):
    bin_folder = environment("[service]")
    assert absent(bin_folder, "torch", "transformers", "onnx")
    service = subprocess.Popen(
        [bin_folder / "plaudit-serve", causal_bundle, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        events = {}
        while "ready" not in events:
            line = service.stderr.readline()
            assert line, "plaudit-serve ended"
            event = json.loads(line)
            events[event["event"]] = event
        score = [bin_folder / "plaudit-score", "--url", events["listening"]["url"], "-"]
        done = subprocess.run(score, input='"How do I boil an egg?"\n', capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["status"] == "ok"
    finally:
        service.terminate()
        service.communicate()
    assert service.returncode == 0


@pytest.mark.parametrize(
    ("extra", "command", "module", "foreign"),
    [
        ("[export]", "plaudit-export", "plaudit_export.exporter", ["trl", "accelerate"]),
        ("[train]", "plaudit-ppo", "plaudit_ppo.trainer", ["onnxruntime", "fastapi", "trl"]),
    ],
)
def test_a_role_that_needs_torch_starts_and_brings_no_other_role(environment, extra, command, module, foreign):
    bin_folder = environment(extra)
    assert subprocess.run([bin_folder / command, "--help"], capture_output=True).returncode == 0
    subprocess.run([bin_folder / "python", "-c", f"import {module}"], check=True)
    assert absent(bin_folder, *foreign)
