"""A replica: a real `plaudit-serve` process on a port of its own, what can be done to it, and what it holds.

The stand-in for an engine is started and ended in the same way.
"""

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from nemesis.history import Usage

SERVE = (str(Path(sys.executable).with_name("plaudit-serve")),)

_START_S = 120.0
_DRAIN_S = 30.0
# Of memory beyond what it has, while memory is scarce.
_SCARCE_BYTES = 8 * 1024 * 1024
_CLOCK_JUMP_S = 3600.0
_IN_QUEUE = {"plaudit_queued_sequences", "plaudit_running_sequences"}

# The wall clock of a process is what this file says beyond the real one; no deadline may be on it.
_CLOCK = """\
import mmap, os, struct, time
with open(os.environ["NEMESIS_CLOCK"], "rb") as file:
    offset = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
real = time.time
time.time = lambda: real() + struct.unpack("d", offset[:8])[0]
"""


class Clock:
    """The wall clock of the processes that are started with `env`, which can be put forward."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(_CLOCK, encoding="utf-8")
        self._file = folder / "offset"
        self._file.write_bytes(struct.pack("d", 0.0))
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = {"PYTHONPATH": os.pathsep.join(paths), "NEMESIS_CLOCK": str(self._file)}

    def set(self, offset_s: float) -> None:
        """Let the clock show so many seconds more than the real one, in place: the file is mapped."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("d", offset_s))


class Replica:
    """One service. Its log goes to a file, and its process is started again by whoever ends it.

    Args:
        name: For messages.
        bundles: What it serves.
        flags: More of its flags.
        folder: Where its log and its clock are.
        command: What is run; other than `plaudit-serve` where a build is broken on purpose.
        env: More variables of its environment.

    Attributes:
        port: The same over restarts.
        restarts: How often it was started again.
        base: What its process held once it was ready.
        ready_at: Since when it is, by the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        bundles: Sequence[Path],
        flags: Sequence[str],
        folder: Path,
        command: Sequence[str] = SERVE,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = free_port()
        self.restarts = -1
        self._bundles = tuple(bundles)
        self._flags = tuple(flags)
        self._folder = folder
        self._command = tuple(command)
        self._clock = Clock(folder / "clock")
        self._env = self._clock.env | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Of its process; None: it runs."""
        assert self._process is not None
        return self._process.poll()

    def start(self, bundles: Sequence[Path] | None = None) -> None:
        """Start it, and wait until it is ready.

        Args:
            bundles: What it serves this time.

        Raises:
            RuntimeError: it ended, or was not ready in time.
        """
        command = [*self._command, *map(str, bundles or self._bundles), "--port", str(self.port), *self._flags]
        env = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
        with (self._folder / "log.jsonl").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=env | self._env)
        self.restarts += 1
        end = time.monotonic() + _START_S
        while not self._is_ready():
            if self.exit_code is not None or time.monotonic() > end:
                said = Path(log.name).read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
                raise RuntimeError(f"{self.name} did not start (exit code {self.exit_code}): {' '.join(said)[:1000]}")
            time.sleep(0.05)
        self.base, self.ready_at = usage(self.pid), time.monotonic()

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/readyz", timeout=5) as answer:  # noqa: S310  our own http:// URL
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)
        self._wait()

    def drain(self) -> int:
        """SIGTERM, and its exit code; killed where it does not end in time."""
        self._signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(_DRAIN_S + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -signal.SIGALRM

    def stop(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @contextlib.contextmanager
    def few_descriptors(self) -> Iterator[None]:
        """It can open no file or connection more."""
        with self._limited(resource.RLIMIT_NOFILE, usage(self.pid).descriptors + 1):
            yield

    @contextlib.contextmanager
    def little_memory(self) -> Iterator[None]:
        """It gets hardly any memory more."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[0])
        with self._limited(resource.RLIMIT_AS, pages * resource.getpagesize() + _SCARCE_BYTES):
            yield

    @contextlib.contextmanager
    def _limited(self, what: int, limit: int) -> Iterator[None]:
        soft, hard = resource.prlimit(self.pid, what)
        resource.prlimit(self.pid, what, (limit, hard))
        try:
            yield
        finally:
            if self.exit_code is None:
                resource.prlimit(self.pid, what, (soft, hard))

    @contextlib.contextmanager
    def clock_ahead(self) -> Iterator[None]:
        """Its wall clock jumps forward, and back."""
        self._clock.set(_CLOCK_JUMP_S)
        try:
            yield
        finally:
            self._clock.set(0.0)

    def counters(self) -> "Counters":
        """What `/metrics` says now."""
        with urlopen(f"{self.url}/metrics", timeout=30) as answer:  # noqa: S310  our own http:// URL
            samples = [
                sample for family in text_string_to_metric_families(answer.read().decode()) for sample in family.samples
            ]
        asked = {"route": "/score", "outcome": "ok"}
        sequences: Counter[str] = Counter()
        for sample in samples:
            if sample.name == "plaudit_sequences_total":
                sequences[sample.labels["status"]] += int(sample.value)
        return Counters(
            requests=int(sum(s.value for s in samples if s.name == "plaudit_requests_total" and s.labels == asked)),
            sequences=sequences,
            in_queue=int(sum(s.value for s in samples if s.name in _IN_QUEUE)),
        )


@dataclass(frozen=True)
class Counters:
    """Requests to /score that were answered with scores, sequences by status, and those in the queue or the engine."""

    requests: int
    sequences: Counter[str]
    in_queue: int


def usage(pid: int | None = None) -> Usage:
    """What a process holds now; None: this one."""
    proc = Path("/proc") / ("self" if pid is None else str(pid))
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text(encoding="utf-8").splitlines())
    children = 0
    for thread in (proc / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            children += len((thread / "children").read_text(encoding="ascii").split())
    return Usage(
        descriptors=len(list((proc / "fd").iterdir())),
        threads=int(status["Threads"]),
        children=children,
        resident_bytes=1024 * int(status["VmRSS"].split()[0]),
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
