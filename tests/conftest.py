"""Fixtures that every test folder uses: hand-made and exported bundles, and a real service process on a real socket."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from plaudit_service.testing import write_tiny_bundle

BIN = Path(sys.executable).parent


@dataclass
class ServiceProcess:
    """A running `plaudit-serve`; `log` is the file that it writes its log lines to."""

    process: subprocess.Popen
    url: str
    log: Path

    def stop(self, timeout_s: float = 30.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def events(self, name: str) -> list[dict]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == name]


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> object:
    """Poll until the condition gives something true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise TimeoutError(f"still waiting after {timeout_s} s")


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., object]:
    """A context manager that runs `plaudit-serve` on bundles: `with serve(bundle, "--flag", ...) as service`."""

    @contextmanager
    def run(
        *bundles: Path, flags: Sequence[str] = (), env: dict[str, str] | None = None, ready: bool = True
    ) -> Iterator[ServiceProcess]:
        log = tmp_path / f"serve-{time.monotonic_ns()}.log"
        command = [str(BIN / "plaudit-serve"), *map(str, bundles), "--port", "0", *flags]
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file, env={**os.environ, **(env or {})})
        service = ServiceProcess(process, "", log)

        def listening() -> list[dict]:
            if process.poll() is not None:
                raise RuntimeError(f"plaudit-serve ended with {process.returncode}: {log.read_text()}")
            return log.read_text().endswith("\n") and service.events("listening")

        try:
            service.url = wait_for(listening)[0]["url"]
            if ready:
                wait_for(lambda: httpx2.get(f"{service.url}/readyz").status_code == 200)
            yield service
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    return run


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes hand-made bundles: `tiny_bundle(name="other", max_tokens=8)`."""

    def write(**options: object) -> Path:
        return write_tiny_bundle(tmp_path / f"bundle-{time.monotonic_ns()}", **options)

    return write


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data of PLAUDIT_DATA, default ../shared/data; skips where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("PLAUDIT_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set PLAUDIT_DATA")
    return path


@pytest.fixture(scope="session")
def causal_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama reward model with a chat template, exported."""
    from plaudit_export.exporter import export_checkpoint
    from plaudit_export.testing import tiny_causal_checkpoint

    folder = tmp_path_factory.mktemp("causal")
    checkpoint = tiny_causal_checkpoint(folder / "checkpoint")
    return export_checkpoint(str(checkpoint), folder / "bundle").bundle.path


@pytest.fixture(scope="session")
def encoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT reward model, exported."""
    from plaudit_export.exporter import export_checkpoint
    from plaudit_export.testing import tiny_encoder_checkpoint

    folder = tmp_path_factory.mktemp("encoder")
    checkpoint = tiny_encoder_checkpoint(folder / "checkpoint")
    return export_checkpoint(str(checkpoint), folder / "bundle").bundle.path
