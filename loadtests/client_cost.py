"""What the client costs per scored sequence, httpx2 against aiohttp at 64 connections, and what hedging is good for.

The service is `instant_server.py`, a process that costs nothing; the texts have 150 words. CPU is that of the client's
process. `measure_client` gives the client's rows to the benchmark.

    .venv/bin/python loadtests/client_cost.py        or        ... --hedging
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from figures import Row
from tqdm import tqdm

from plaudit_client import AsyncRewardClient, RewardClient

CONNECTIONS = 64
TEXT = "word " * 150


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=4000, help="requests of one round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: %(default)s)")
    parser.add_argument("--hedging", action="store_true", help="instead: two replicas, one of which takes 2 s more")
    options = parser.parse_args()
    if options.hedging:
        return measure_hedging(options.requests, options.rounds)
    rows = measure(options.requests, options.rounds, {**_LIBRARIES, **_CLIENT})
    print(f"\nmedians of {options.rounds} rounds, {os.cpu_count()} cores, {platform.machine()}")
    print(f"{'way':<44}{'CPU ms/sequence':>16}{'sequences/s':>14}")
    for way, row in rows.items():
        print(f"{way:<44}{row['cpu_ms_per_sequence']:>16}{row['sequences_per_s']:>14}")
    print(json.dumps({"benchmark": "client-cost", "rounds": options.rounds, "rows": rows}))
    return 0


def measure_client(num_sequences: int, rounds: int) -> list[Row]:
    """The client's own cost: CPU milliseconds per sequence of each way to call it."""
    return [
        Row("client alone: CPU per sequence", way, row["cpu_ms_per_sequence"], "ms", more=row)
        for way, row in measure(num_sequences, rounds, _CLIENT).items()
    ]


Way = Callable[[str, int], None]


def measure(num_sequences: int, rounds: int, ways: dict[str, Way]) -> dict[str, dict[str, float]]:
    """Run all ways in turn, one warm-up round more than is counted; medians."""
    figures: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with instant_server() as url, tqdm(total=(rounds + 1) * len(ways), unit="run", file=sys.stderr) as progress:
        for number in range(rounds + 1):
            for way, run in ways.items():
                cpu_s, started_s = time.process_time(), time.perf_counter()
                run(url, num_sequences)
                wall_s = time.perf_counter() - started_s
                if number:
                    figures[way].append(((time.process_time() - cpu_s) / num_sequences, num_sequences / wall_s))
                progress.update()
    return {
        way: {
            "cpu_ms_per_sequence": round(1000 * statistics.median(cpu_s for cpu_s, _ in values), 4),
            "sequences_per_s": round(statistics.median(rate for _, rate in values)),
        }
        for way, values in figures.items()
    }


def measure_hedging(num_sequences: int, rounds: int) -> int:
    """Seconds of one call of single requests, with a fast and a slow replica."""
    with instant_server() as fast, instant_server() as equal, instant_server(delay_s=2.0) as slow:
        ways = {
            "both fast": ([fast, equal], False),
            "one slow": ([fast, slow], False),
            "one slow, hedging": ([fast, slow], True),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (urls, hedge) in ways.items():
                with RewardClient(urls, max_items_per_request=1, hedge=hedge) as client:
                    started_s = time.perf_counter()
                    client.score([TEXT] * num_sequences)
                    seconds[way].append(time.perf_counter() - started_s)
    medians = {way: round(statistics.median(values), 2) for way, values in seconds.items()}
    print(json.dumps({"benchmark": "hedging", "requests": num_sequences, "rounds": rounds, "seconds": medians}))
    return 0


@contextlib.contextmanager
def instant_server(delay_s: float = 0.0) -> Iterator[str]:
    """The URL of a service that costs nothing, in a process of its own."""
    command = [sys.executable, Path(__file__).with_name("instant_server.py"), str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def client_singles(url: str, count: int) -> None:
    """Each text in a request of its own, 64 at once."""

    async def run() -> None:
        async with AsyncRewardClient(url, max_items_per_request=1, max_concurrency=CONNECTIONS) as client:
            assert len(await client.score([TEXT] * count)) == count

    asyncio.run(run())


def client_one_call(url: str, count: int) -> None:
    """One call of the sync client, split to the service's limit."""
    with RewardClient(url) as client:
        assert len(client.score([TEXT] * count)) == count


def with_httpx2(url: str, count: int) -> None:
    """Bare httpx2, 64 connections."""
    import httpx2

    async def run() -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS)
        async with httpx2.AsyncClient(timeout=None, limits=limits) as http:

            async def post() -> bytes:
                return (await http.post(f"{url}/score", content=_BODY, headers=_HEADERS)).content

            await _send_all(post, count)

    asyncio.run(run())


def with_aiohttp(url: str, count: int) -> None:
    """Bare aiohttp, 64 connections."""
    import aiohttp

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

            async def post() -> bytes:
                async with http.post(f"{url}/score", data=_BODY, headers=_HEADERS) as response:
                    return await response.read()

            await _send_all(post, count)

    asyncio.run(run())


async def _send_all(post: Callable[[], Awaitable[bytes]], count: int) -> None:
    turns = iter(range(count))

    async def work() -> None:
        for _ in turns:
            assert len(await post()) > 0

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


_BODY = json.dumps({"items": [{"text": TEXT}], "truncation": "error", "raw": False}).encode()
_HEADERS = {"Content-Type": "application/json", "X-Request-Id": "0" * 32, "X-Request-Timeout-S": "60.000"}
_LIBRARIES: dict[str, Way] = {
    "bare httpx2, 64 connections": with_httpx2,
    "bare aiohttp, 64 connections": with_aiohttp,
}
_CLIENT: dict[str, Way] = {
    "client, 64 concurrent singles": client_singles,
    "client, one call": client_one_call,
}


if __name__ == "__main__":
    sys.exit(main())
