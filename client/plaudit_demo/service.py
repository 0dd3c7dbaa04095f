"""The scoring service of the demo: started as a process, waited for, and read from its log and /metrics."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from plaudit_client import PlauditError, RewardClient
from plaudit_client.errors import DeadlineExceeded
from plaudit_demo.errors import DemoError
from plaudit_demo.processes import command, failed, running, wait

_START_TIMEOUT_S = 120.0
_BUCKET = re.compile(r'plaudit_request_seconds_bucket\{le="([^"]+)",route="/score"\} (\S+)')
_SUM = re.compile(r'plaudit_request_seconds_sum\{route="/score"\} (\S+)')


@contextmanager
def serving(
    bundle: Path, log: Path, *, num_threads: int, timeout_s: float, on_poll: Callable[[], None]
) -> Iterator[tuple[str, RewardClient]]:
    """Serve a bundle on a free port of this machine for as long as the block runs.

    Args:
        bundle: the bundle's directory.
        log: where the service's log goes.
        num_threads: of the service's engine.
        timeout_s: of each call of the client.
        on_poll: called a few times a second until the service is ready.

    Yields:
        Its URL, and a client for it, ready to score.

    Raises:
        DemoError: the service does not start, or the block fails; if because the service has died, then it says so.
    """
    arguments = [command("plaudit-serve"), str(bundle), "--host", "127.0.0.1", "--port", "0"]
    arguments += ["--num-threads", str(num_threads)]
    deadline = time.monotonic() + _START_TIMEOUT_S
    with running(arguments, log) as process:

        def check() -> None:
            status = wait(process)
            if status is not None:
                raise failed(arguments, status, log)
            if time.monotonic() > deadline:
                raise DemoError(f"plaudit-serve was not ready within {_START_TIMEOUT_S:.0f} s (log: {log})")
            on_poll()

        while (url := listening_url(log.read_text(encoding="utf-8", errors="replace"))) is None:
            check()
        with RewardClient(url, api_key="", timeout_s=timeout_s) as client:
            while not _is_ready(client):
                check()
            try:
                yield url, client
            except (DemoError, PlauditError, httpx2.HTTPError) as error:
                if (status := process.poll()) is not None:
                    raise failed(arguments, status, log) from error
                raise DemoError(f"{error} (log of plaudit-serve: {log})") from error


def listening_url(log: str) -> str | None:
    """The address in the service's log line `listening`, if that has been written."""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("event") == "listening":
            return str(entry["url"])
    return None


def _is_ready(client: RewardClient) -> bool:
    try:
        client.wait_until_ready(timeout_s=0.5)
    except DeadlineExceeded:
        return False
    return True


@dataclass(frozen=True)
class Latency:
    """How long the service took for requests to /score, as its histogram tells.

    Attributes:
        bounds_s: upper bounds of the buckets, in seconds; the last one is infinite.
        counts: requests in each bucket.
        mean_s: seconds per request.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    mean_s: float

    def share_within(self, bound_s: float) -> float:
        """The share of requests that took at most `bound_s`, which has to be a bucket's bound."""
        return sum(self.counts[: self.bounds_s.index(bound_s) + 1]) / sum(self.counts)


def fetch_metrics(url: str) -> str:
    """The text of the service's /metrics."""
    with httpx2.Client(trust_env=False) as http:
        response = http.get(f"{url}/metrics")
    response.raise_for_status()
    return response.text


def read_latency(metrics: str) -> Latency:
    """The latency of /score in a text of /metrics.

    Raises:
        DemoError: the text does not have it.
    """
    buckets = sorted((float(bound), int(float(count))) for bound, count in _BUCKET.findall(metrics))
    total = _SUM.search(metrics)
    if not buckets or total is None or buckets[-1][1] == 0:
        raise DemoError("the service's /metrics has no plaudit_request_seconds of /score")
    cumulative = [count for _, count in buckets]
    counts = tuple(upper - lower for lower, upper in zip([0, *cumulative], cumulative, strict=False))
    return Latency(tuple(bound for bound, _ in buckets), counts, float(total[1]) / cumulative[-1])
