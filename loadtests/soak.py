"""Whether the service's memory stays flat: many requests of all shapes, some invalid, some whose client leaves.

Resident memory after warm-up (the first fifth of the requests) is compared with that at the end. Exit code 1: it grew
by more than allowed, or the service answered with a 5xx.

    make soak        or        .venv/bin/python loadtests/soak.py --help
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
from http_load import Client, post
from servers import Server, end_on_sigterm, resident_bytes, service
from tqdm import tqdm

WARM_UP_SHARE = 0.2
NUM_SAMPLES = 200
LEAVE_AFTER_S = 0.005
_WORDS = ["the", "quick", "brown", "fox", "asks", "why", "nobody", "boils", "an", "egg", "in", "water", "today"]


def main() -> int:
    """Send and watch; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="requests to send (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument("--max-growth", type=float, default=0.01, help="allowed share (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: a causal model of two layers)")
    parser.add_argument("--flag", action="append", default=[], help="one more flag of plaudit-serve, as --flag=--x=1")
    options = parser.parse_args()
    bundle = options.bundle or subject("tiny").bundle
    with service(bundle, flags=options.flag) as server:
        soaked = asyncio.run(soak(server, options.requests, options.connections))
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
    """Resident memory by the number of requests that were sent, and what became of them."""

    samples: list[tuple[int, int]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

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


async def soak(server: Server, num_requests: int, connections: int, seed: int = 0) -> Soaked:
    """Send requests, a number of them at a time, and sample the memory of the service."""
    soaked = Soaked()
    client = Client(server.url)
    every = max(1, num_requests // NUM_SAMPLES)
    requests = enumerate(mixed_requests(server.url, num_requests, seed))
    with tqdm(total=num_requests, desc="soak", unit="request", file=sys.stderr) as progress:

        async def work() -> None:
            for number, (request, leaves) in requests:
                if number % every == 0:
                    soaked.samples.append((number, resident_bytes(server.pid)))
                answer = await client.send(request, timeout_s=LEAVE_AFTER_S if leaves else 60.0)
                soaked.outcomes["left" if leaves and answer.status == 0 else str(answer.status)] += 1
                progress.update()

        await asyncio.gather(*(work() for _ in range(connections)))
    soaked.samples.append((num_requests, resident_bytes(server.pid)))
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
    """Ten lines of memory, and the outcomes."""
    start = soaked.samples[int(len(soaked.samples) * WARM_UP_SHARE)][1]
    lines = [f"{'requests':>10}{'resident MB':>14}{'since warm-up':>16}"]
    for number, size in soaked.samples[:: max(1, len(soaked.samples) // 10)]:
        lines.append(f"{number:>10}{size / 1e6:>14.2f}{size / start - 1:>15.2%}")
    counts = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(soaked.outcomes.items()))
    return "\n".join([*lines, f"answers by status: {counts}", f"growth after warm-up: {soaked.growth:.3%}"])


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
