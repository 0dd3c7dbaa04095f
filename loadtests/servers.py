"""The processes that benchmarks measure: `plaudit-serve` with each runtime, and the plain handler."""

import importlib.util
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints
from urllib.error import HTTPError
from urllib.request import urlopen

from checkpoints import Subject

from plaudit_service.settings import Settings
from plaudit_service.testing import running_service

START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Server:
    """A server that answers; `start_s` is the time from the start of its process until then."""

    url: str
    pid: int
    start_s: float

    @property
    def resident_bytes(self) -> int:
        """Memory that the process holds now."""
        return resident_bytes(self.pid)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples in `/metrics`; 0 where it has none."""
        return sum_of_samples(self.get("/metrics"), name)

    def get(self, path: str) -> str:
        """The answer of a route; raises unless it is 200."""
        try:
            with urlopen(self.url + path, timeout=30) as answer:  # noqa: S310  our own http:// URL
                return str(answer.read().decode())
        except HTTPError as error:
            raise RuntimeError(f"{path}: HTTP {error.code} {error.read().decode()[:300]}") from error


@contextmanager
def service(bundle: Path, *, runtime: str = "onnxruntime", flags: Sequence[str] = ()) -> Iterator[Server]:
    """Run `plaudit-serve` until the block ends; no score cache may have answered by then."""
    started = time.monotonic()
    with running_service(bundle, flags=["--runtime", runtime, *flags], timeout_s=START_TIMEOUT_S) as running:
        server = Server(running.url, running.process.pid, time.monotonic() - started)
        server.get("/readyz")  # a service whose start-up check failed is not measured
        yield server
        hits = server.metric("plaudit_score_cache_hits_total")
        assert hits == 0, f"{hits:.0f} scores came from the score cache: this measured the cache"


@contextmanager
def plain_handler(subject: Subject, dtype: Literal["bfloat16", "float32"]) -> Iterator[Server]:
    """Run the plain handler until the block ends."""
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).with_name("plain_handler.py")), str(subject.checkpoint)]
    process = subprocess.Popen([*command, "--dtype", dtype], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield Server(_first_line(process), process.pid, time.monotonic() - started)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _first_line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline().decode().strip() if selector.select(START_TIMEOUT_S) else ""
    if not line:
        raise RuntimeError(f"{' '.join(map(str, process.args))} did not start")  # type: ignore[arg-type]
    return line


def end_on_sigterm() -> None:
    """End this command by an exception at SIGTERM, so that the servers of open blocks are stopped with it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def missing_runtime(runtime: str) -> str | None:
    """Why the installed `plaudit-serve` cannot run with a runtime; None: it can."""
    offered = get_args(get_type_hints(Settings)["runtime"])
    if runtime not in offered:
        return f"the installed plaudit-serve offers --runtime {', '.join(offered)} only"
    if importlib.util.find_spec(runtime) is None:
        return f"the package {runtime} is not installed"
    return None


def has_setting(name: str) -> bool:
    """Whether the installed `plaudit-serve` has a setting."""
    return name in {each.name for each in fields(Settings)}


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, from /proc."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kib = re.search(r"^VmRSS:\s+(\d+) kB$", status, flags=re.MULTILINE)
    assert kib is not None
    return 1024 * int(kib[1])


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, user and system, from /proc."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """CPU time that all processes of this machine have used, of all cores together, from /proc."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text("ascii").split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def num_cores() -> int:
    """Of this machine."""
    return os.cpu_count() or 1


def sum_of_samples(exposition: str, name: str) -> float:
    """Add up the samples of a metric, whatever their labels."""
    lines = [line.rsplit(" ", 1) for line in exposition.splitlines() if not line.startswith("#")]
    return sum(float(value) for series, value in lines if series.partition("{")[0] == name)
