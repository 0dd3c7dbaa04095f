"""How throughput grows with replicas, and how many replicas one client's core feeds.

Replicas are the real service with an engine that takes a fixed time per token (`stand_in.py`), so that their number and
not this machine's cores is what limits them. Past what fits on one machine, the client's choice of replica is
simulated by its own code (`scale_choice.py`).

    .venv/bin/python loadtests/scale.py        or        ... --help
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nemesis.replicas import Replica
from scale_choice import Spread, simulate
from servers import cpu_seconds, end_on_sigterm
from tqdm import tqdm

from plaudit_client import AsyncRewardClient
from plaudit_service.testing import write_tiny_bundle

WORDS = ("good", "fine", "bad", "awful")
# Sequences of one request, and words of one sequence; with BOS it has one token more.
SEQUENCES, TOKENS = 16, 64
# Requests in flight for each replica: one is computed while the next lies there.
IN_FLIGHT = 3
# What a row has to reach of linear.
ENOUGH = 0.9


def main() -> int:
    """Measure and print; exit code 1: a row that no full core explains is below 0.9 of linear."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4], help="(default: %(default)s)")
    parser.add_argument("--token-s", type=float, default=0.001, help="seconds of a token (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row (default: %(default)s)")
    parser.add_argument(
        "--simulated", type=int, nargs="*", default=[10, 32, 100, 316, 1000], help="(default: %(default)s)"
    )
    options = parser.parse_args()
    spreads = [
        simulate(replicas, clients, in_flight=IN_FLIGHT, rounds=20)
        for replicas in tqdm(options.simulated, desc="simulated", file=sys.stderr)
        for clients in (1, 4, 16)
    ]
    rows = measure(options.replicas, options.clients, options.token_s, options.seconds)
    print(describe(rows, spreads, options.token_s))
    print(
        json.dumps(
            {
                "benchmark": "scale",
                "rows": [asdict(row) for row in rows],
                "simulated": [asdict(each) for each in spreads],
            }
        )
    )
    return int(any(row.of_linear < ENOUGH and row.busiest_client < ENOUGH for row in rows))


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        replicas: How many there were.
        clients: Processes that asked.
        sequences_per_s: All clients together.
        of_linear: Of what so many replicas do at most.
        busiest_client: CPU time of the busiest client's process over the time that passed.
        client_cpu_ms: CPU milliseconds of the clients for a sequence.
        service_cpu_ms: Likewise of the replicas.
    """

    replicas: int
    clients: int
    sequences_per_s: float
    of_linear: float
    busiest_client: float
    client_cpu_ms: float
    service_cpu_ms: float


def measure(replicas: Sequence[int], clients: Sequence[int], token_s: float, seconds: float) -> list[Row]:
    """All rows; the replicas are started as they are needed."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle = write_tiny_bundle(Path(folder) / "bundle", max_tokens=TOKENS)
        bar = stack.enter_context(tqdm(total=len(replicas) * len(clients), unit="row", file=sys.stderr))
        running: list[Replica] = []
        for count in sorted(replicas):
            while len(running) < count:
                running.append(stack.enter_context(_stand_in(bundle, Path(folder), len(running), token_s)))
            for num_clients in clients:
                rows.append(_row(running, num_clients, token_s, seconds))
                bar.update()
    return rows


@contextmanager
def _stand_in(bundle: Path, folder: Path, number: int, token_s: float) -> Iterator[Replica]:
    place = folder / f"replica-{number}"
    place.mkdir()
    env = {"PLAUDIT_STAND_IN_S": str(token_s)}
    command = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
    replica = Replica(place.name, [bundle], ["--num-threads=1", "--no-console"], place, command, env)
    replica.start()
    try:
        yield replica
    finally:
        replica.kill()


def _row(running: Sequence[Replica], num_clients: int, token_s: float, seconds: float) -> Row:
    urls = ",".join(replica.url for replica in running)
    in_flight = max(1, round(IN_FLIGHT * len(running) / num_clients))
    command = [sys.executable, __file__, "--as-client", urls, str(in_flight), str(seconds)]
    before_s = sum(cpu_seconds(replica.pid) for replica in running)
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(num_clients)]
    told = [json.loads(process.communicate()[0]) for process in processes]
    service_s = sum(cpu_seconds(replica.pid) for replica in running) - before_s
    scored = sum(one["sequences"] for one in told)
    rate = sum(one["sequences"] / one["seconds"] for one in told)
    return Row(
        len(running),
        num_clients,
        round(rate, 1),
        round(rate * token_s * TOKENS / len(running), 3),
        round(max(one["cpu_s"] / one["seconds"] for one in told), 3),
        round(1000 * sum(one["cpu_s"] for one in told) / scored, 3),
        round(1000 * service_s / sum(one["all"] for one in told), 3),
    )


async def ask(urls: str, in_flight: int, seconds: float) -> dict[str, float]:
    """Keep so many requests in flight; count those that end within `seconds` after a warm-up of a quarter of that."""
    loop, number, scored, everything = asyncio.get_running_loop(), 0, 0, 0
    async with AsyncRewardClient(
        urls, max_concurrency=in_flight, max_items_per_request=SEQUENCES, timeout_s=600
    ) as client:
        await client.score([_text(0)])
        begin = loop.time() + seconds / 4
        end = begin + seconds
        cpu: list[float] = []

        async def work() -> None:
            nonlocal number, scored, everything
            while loop.time() < end:
                items = [_text(number + place) for place in range(SEQUENCES)]
                number += SEQUENCES
                await client.score(items)
                everything += SEQUENCES
                scored += SEQUENCES * (begin <= loop.time() < end)

        async def watch() -> None:
            for at in (begin, end):
                await asyncio.sleep(at - loop.time())
                cpu.append(time.process_time())

        await asyncio.gather(watch(), *(work() for _ in range(in_flight)))
    return {"sequences": scored, "all": everything, "seconds": seconds, "cpu_s": cpu[1] - cpu[0]}


def _text(number: int) -> str:
    """Texts of one length, hardly any two of them the same."""
    number += os.getpid() << 32
    return " ".join(WORDS[number >> 2 * place & 3] for place in range(TOKENS - 1))


def describe(rows: Sequence[Row], spreads: Sequence[Spread], token_s: float) -> str:
    """Two tables."""
    lines = [
        f"{SEQUENCES} sequences of {TOKENS} tokens a request, {1000 * token_s:g} ms a token, {os.cpu_count()} cores",
        _line("replicas", "clients", "sequences/s", "of linear", "busiest client", "client ms", "service ms"),
    ]
    for row in rows:
        cells = (row.replicas, row.clients, row.sequences_per_s, row.of_linear, f"{row.busiest_client:.0%}")
        lines.append(_line(*cells, row.client_cpu_ms, row.service_cpu_ms))
    if rows:
        rate = 1000 / min(row.client_cpu_ms for row in rows)
        lines.append(f"one client's core feeds {rate:.0f} sequences/s: {rate * token_s * TOKENS:.0f} such replicas")
    lines.append(_line("simulated", "clients", "of linear", "choice, ms"))
    lines += [
        _line(each.num_replicas, each.num_clients, f"{each.of_linear:.3f}", f"{1000 * each.pick_s:.3f}")
        for each in spreads
    ]
    return "\n".join(lines)


def _line(*cells: object) -> str:
    return "".join(f"{cell!s:>15}" for cell in cells)


if __name__ == "__main__":
    end_on_sigterm()
    if sys.argv[1:2] == ["--as-client"]:
        print(json.dumps(asyncio.run(ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))))
        sys.exit(0)
    sys.exit(main())
