"""Starts a scoring service for a benchmark and stops it again."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plaudit_client import RewardClient


@contextmanager
def running_service(bundle: Path, *flags: str, ready_timeout_s: float = 120.0) -> Iterator[str]:
    """A `plaudit-serve` on a free port of this machine; gives its URL once it is ready.

    Raises:
        RuntimeError: it ended, with its log's last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        with log.open("wb") as file:
            command = [str(Path(sys.executable).with_name("plaudit-serve")), str(bundle), "--port", "0", *flags]
            process = subprocess.Popen(command, stderr=file)
        try:
            url = _wait_for_url(process, log, time.monotonic() + ready_timeout_s)
            with RewardClient(url) as client:
                client.wait_until_ready(ready_timeout_s)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path, end: float) -> str:
    while time.monotonic() < end:
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and '"event": "listening"' in line:
                return str(json.loads(line)["url"])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"plaudit-serve did not start: {log.read_text()[-1000:]}")
