"""Whether the service's memory stays flat: many requests of all shapes, some invalid, some whose client leaves.

Resident memory after warm-up (the first fifth of the requests) is compared with that at the end. Exit code 1: it grew
by more than allowed, or the service answered with a 5xx. With `--minutes` the requests come at random times, as
many a second as `--rate` says; else each is sent as soon as there is a connection for it.

    make soak        or        make soak-hour        or        .venv/bin/python loadtests/soak.py --help
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import subject
from figures import percentile
from http_load import Client, poisson_arrivals, post
from servers import Server, cpu_seconds, end_on_sigterm, resident_bytes, service
from tqdm import tqdm

WARM_UP_SHARE = 0.2
NUM_SAMPLES = 200
LEAVE_AFTER_S = 0.005
_WORDS = ["the", "quick", "brown", "fox", "asks", "why", "nobody", "boils", "an", "egg", "in", "water", "today"]


def main() -> int:
    """Send and watch; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="requests to send (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="how long to send, at --rate, instead of --requests")
    parser.add_argument("--rate", type=float, help="requests per second, on average")
    parser.add_argument("--connections", type=int, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument("--max-growth", type=float, default=0.01, help="allowed share (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: a causal model of two layers)")
    parser.add_argument("--flag", action="append", default=[], help="one more flag of plaudit-serve, as --flag=--x=1")
    options = parser.parse_args()
    if (options.minutes is None) != (options.rate is None):
        parser.error("--minutes and --rate go together")
    due_s = None if options.minutes is None else poisson_arrivals(options.rate, 60 * options.minutes, seed=0)
    num_requests = options.requests if due_s is None else len(due_s)
    bundle = options.bundle or subject("tiny").bundle
    with service(bundle, flags=options.flag) as server:
        soaked = asyncio.run(soak(server, num_requests, options.connections, due_s=due_s))
    print(describe(soaked))
    broken = soaked.num_server_errors
    if broken:
        print(f"failed: {broken} answers were a 5xx", file=sys.stderr)
    if soaked.growth > options.max_growth:
        limit = f"{options.max_growth:.2%}"
        print(f"failed: resident memory grew by {soaked.growth:.2%} after warm-up, limit {limit}", file=sys.stderr)
    return int(bool(broken) or soaked.growth > options.max_growth)


@dataclass
class Soaked:
    """Resident memory by the number of requests that were sent, and what became of them.

    Attributes:
        samples: Requests sent, bytes.
        outcomes: Answers of each status; "left" where the client left first.
        scored_s: Seconds until each answer with scores, from when its request was due.
        lasted_s: Seconds of the whole soak.
        cpu_s: CPU seconds of the service in it.
    """

    samples: list[tuple[int, int]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    scored_s: list[float] = field(default_factory=list)
    lasted_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def growth(self) -> float:
        """Share by which memory grew since warm-up."""
        return growth([size for _, size in self.samples], WARM_UP_SHARE)

    @property
    def num_server_errors(self) -> int:
        """Answers that say that the service is broken."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("5"))


def growth(sizes: Sequence[int], warm_up_share: float) -> float:
    """Median of the last tenth of the sizes over that of the tenth that follows warm-up, less one."""
    first, tenth = int(len(sizes) * warm_up_share), max(1, len(sizes) // 10)
    return statistics.median(sizes[-tenth:]) / statistics.median(sizes[first : first + tenth]) - 1


async def soak(
    server: Server, num_requests: int, connections: int, *, due_s: Sequence[float] | None = None, seed: int = 0
) -> Soaked:
    """Send requests, and sample the memory of the service.

    Args:
        server: The service.
        num_requests: How many to send.
        connections: How many at a time at most.
        due_s: When each is due, in seconds from now, ascending; None: as soon as there is a connection for it.
        seed: Of the requests.
    """
    soaked = Soaked()
    client = Client(server.url)
    every = max(1, num_requests // NUM_SAMPLES)
    requests = enumerate(mixed_requests(server.url, num_requests, seed))
    loop = asyncio.get_running_loop()
    begin, cpu_before = loop.time(), cpu_seconds(server.pid)
    with tqdm(total=num_requests, desc="soak", unit="request", file=sys.stderr) as progress:

        async def work() -> None:
            for number, (request, leaves) in requests:
                if number % every == 0:
                    soaked.samples.append((number, resident_bytes(server.pid)))
                due = None if due_s is None else begin + due_s[number]
                if due is not None:
                    await asyncio.sleep(due - loop.time())
                answer = await client.send(request, timeout_s=LEAVE_AFTER_S if leaves else 60.0, since=due)
                soaked.outcomes["left" if leaves and answer.status == 0 else str(answer.status)] += 1
                if answer.status == 200:
                    soaked.scored_s.append(answer.seconds)
                progress.update()

        await asyncio.gather(*(work() for _ in range(connections)))
    soaked.samples.append((num_requests, resident_bytes(server.pid)))
    soaked.lasted_s, soaked.cpu_s = loop.time() - begin, cpu_seconds(server.pid) - cpu_before
    client.close()
    return soaked


def mixed_requests(url: str, count: int, seed: int) -> Iterator[tuple[bytes, bool]]:
    """Requests of all shapes, and whether their client leaves before the answer."""
    source = random.Random(seed)

    def words(longest: int) -> str:
        return " ".join(source.choices(_WORDS, k=source.randint(1, longest)))

    def document() -> Any:
        group = {"prompt": words(30), "completions": [" " + words(20) for _ in range(8)]}
        shapes: list[tuple[int, Any]] = [
            (60, {"items": [{"text": words(60)}]}),
            (15, {"items": [group]}),
            (5, {"items": [{"prompt": words(20), "completion": " " + words(20)} for _ in range(32)]}),
            (5, {"items": [{"token_ids": source.choices(range(10, 200), k=source.randint(1, 60))}], "raw": True}),
            (3, {"items": [{"text": words(60) * 30}]}),
            (2, {"items": [{"text": words(60) * 30}], "truncation": "left"}),
            (2, {"items": [{"text": ""}, {"text": words(5)}]}),
            (2, {"items": [{"text": 7}]}),
            (2, {"items": [{"text": words(5)}], "model": "nobody"}),
            (2, {"items": [{"text": words(5)}], "unknown": True}),
            (2, b'{"items": [' + json.dumps(words(50)).encode()),
        ]
        return source.choices([shape for _, shape in shapes], weights=[weight for weight, _ in shapes])[0]

    for _ in range(count):
        yield post(url, document()), source.random() < 0.05


def describe(soaked: Soaked) -> str:
    """Ten lines of memory, the outcomes, and how long answers with scores took."""
    start = soaked.samples[int(len(soaked.samples) * WARM_UP_SHARE)][1]
    lines = [f"{'requests':>10}{'resident MB':>14}{'since warm-up':>16}"]
    for number, size in soaked.samples[:: max(1, len(soaked.samples) // 10)]:
        lines.append(f"{number:>10}{size / 1e6:>14.2f}{size / start - 1:>15.2%}")
    counts = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(soaked.outcomes.items()))
    p50_s, p99_s = (percentile(soaked.scored_s, share) for share in (0.5, 0.99))
    return "\n".join(
        [
            *lines,
            f"answers by status: {counts}",
            f"answers with scores: p50 {1000 * p50_s:.1f} ms, p99 {1000 * p99_s:.1f} ms",
            f"lasted {soaked.lasted_s:.0f} s; CPU time of the service: {soaked.cpu_s:.0f} s",
            f"growth after warm-up: {soaked.growth:.3%}",
        ]
    )


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
