"""The CPU image, built in a clean root and run there: read-only, without root's rights, as its own metadata says."""

import json
import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Kept from one run to the next: the base takes minutes to make.
DIRECTORY = Path(os.environ.get("PLAUDIT_IMAGE_DIRECTORY", "/var/tmp/plaudit-image"))  # noqa: S108
KEY = "secret"
pytestmark = pytest.mark.slow

# What an engine does for `run --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp`.
ENTER = """
root=$1 bundle=$2 user=$3 group=$4; shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$bundle" "$root/bundle"; mount -o remount,bind,ro "$root/bundle"
mount -t tmpfs tmpfs "$root/tmp"; mount -t proc proc "$root/proc"; mount --bind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all env --chdir=/tmp -- "$@"
"""


@dataclass
class Image:
    """A root directory and the metadata of the image that it is of."""

    root: Path
    config: dict
    bundle: Path

    def command(self, *arguments, env=None):
        """Keyword arguments of subprocess for a command in the image."""
        user, group = self.config["User"].split(":")
        inside = ["unshare", "--mount", "sh", "-ec", ENTER, "sh", self.root, self.bundle, user, group, *arguments]
        variables = dict(variable.split("=", 1) for variable in self.config["Env"])
        return {"args": [str(part) for part in inside], "env": variables | (env or {}), "text": True}

    def run(self, *arguments, **options):
        return subprocess.run(**self.command(*arguments, **options), capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Image:
    from plaudit_service.testing import write_tiny_bundle

    missing = [tool for tool in ("buildah", "mmdebstrap", "unshare", "setpriv") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, buildah and mmdebstrap; missing: {missing or 'root'}")
    script = [ROOT / "deploy" / "build_in_clean_root.sh", "cpu", DIRECTORY]
    root = Path(subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True, timeout=3000).stdout.split()[-1])
    (root / "bundle").mkdir(exist_ok=True)
    config = json.loads((DIRECTORY / "cpu.json").read_text())["Docker"]["config"]
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("image") / "bundle")
    for path in (bundle.parent, bundle):
        path.chmod(0o755)
    yield Image(root, config, bundle)
    subprocess.run(["umount", root], check=False, capture_output=True)


@contextmanager
def served(image, env):
    """The image's own command, from when it is ready."""
    command = image.command(*image.config["Entrypoint"], *image.config["Cmd"], env=env)
    service = subprocess.Popen(**command, stderr=subprocess.PIPE)
    try:
        said = []
        while not said or '"ready"' not in said[-1]:
            said.append(service.stderr.readline())
            assert said[-1], f"the service ended: {said}"
        yield service
    finally:
        service.terminate()
        service.communicate(timeout=60)


@pytest.fixture
def env():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"PLAUDIT_API_KEYS": KEY, "PLAUDIT_PORT": str(port)}


def test_the_image_scores_as_nobody_on_a_read_only_root(image, env):
    with served(image, env) as service:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{service.pid}/status").read_text().splitlines())
        assert set(status["Uid"].split()) == {"10001"}
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        url = f"http://127.0.0.1:{env['PLAUDIT_PORT']}"
        text = """echo '"good fine bad"' | plaudit-score --url "$0" -"""
        scored = image.run("sh", "-c", text, url, env={"PLAUDIT_API_KEY": KEY})
        assert json.loads(scored.stdout)["score"] == 0.5, scored.stderr
        assert image.run(*image.config["Healthcheck"]["Test"][1:], env=env).returncode == 0
        assert image.run(*image.config["Healthcheck"]["Test"][1:], "/readyz", env=env).returncode == 0
    assert service.returncode == 0  # STOPSIGNAL


def test_the_health_check_fails_where_nothing_answers(image, env):
    assert image.run(*image.config["Healthcheck"]["Test"][1:], env=env).returncode == 1


def test_nothing_but_tmp_can_be_written(image):
    done = image.run("sh", "-c", "for d in / /opt/plaudit /etc /var/tmp /bundle /tmp; do touch $d/x && echo $d; done")
    assert done.stdout == "/tmp\n"  # noqa: S108


def test_other_machines_are_not_served_without_a_key(image):
    done = image.run(*image.config["Entrypoint"], *image.config["Cmd"])
    assert done.returncode == 2
    assert "give --api-key-file FILE, or --allow-unauthenticated" in done.stderr


def test_the_image_verifies_a_bundle_on_its_own(image):
    done = image.run("plaudit-fetch", "/bundle", "/tmp/rm")  # noqa: S108
    assert done.stdout.startswith("sha256:"), done.stderr
    done = image.run("plaudit-fetch", "/bundle", "/tmp/rm", "--fingerprint", "sha256:0")  # noqa: S108
    assert done.returncode == 2


def test_neither_torch_nor_pip_is_in_the_image(image):
    (packages,) = (image.root / "opt/plaudit/lib").glob("python3*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert {"plaudit_service", "onnxruntime"} <= names
    assert not {"torch", "transformers", "pip", "setuptools"} & names


def test_the_image_says_what_it_is(image):
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["User"].split(":")[0].isdigit()
