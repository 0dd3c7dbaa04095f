"""One client's burst beside a person who asks for one score after the other: what fairness between keys is worth.

Used by `load_report`.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import percentile
from http_load import Client, post
from load_policy import backoff_s
from servers import Server, service

TRAINER, PERSON = "trainer-key", "person-key"
REQUEST_SEQUENCES = 64  # of one request of the trainer
TRAINER_REQUESTS = 32  # at once
FULL_CALLS = 2  # that the person may wait longer than in an idle service


@dataclass(frozen=True)
class Burst:
    """What a person waited in an idle service and beside a burst, in seconds, and how long a full batch took."""

    num_sequences: int
    idle_p99_s: float
    busy_p50_s: float
    busy_p99_s: float
    call_s: float
    num_asked: int
    num_failed: int

    @property
    def limit_s(self) -> float:
        """What the person may wait at most."""
        return self.idle_p99_s + FULL_CALLS * self.call_s

    @property
    def ok(self) -> bool:
        """Whether the person was served in time, every time."""
        return self.num_failed == 0 and self.busy_p99_s <= self.limit_s

    def describe(self) -> str:
        """One sentence."""
        return (
            f"beside a burst of {self.num_sequences} sequences with another key, a person's p50 is "
            f"{1000 * self.busy_p50_s:.0f} ms and p99 {1000 * self.busy_p99_s:.0f} ms over {self.num_asked} requests "
            f"({self.num_failed} failed); idle p99 {1000 * self.idle_p99_s:.0f} ms and {FULL_CALLS} full batches of "
            f"{1000 * self.call_s:.0f} ms allow {1000 * self.limit_s:.0f} ms"
        )


def measure_burst(
    bundle: Path, texts: Sequence[str], *, num_sequences: int, idle_requests: int, flags: Sequence[str] = ()
) -> Burst:
    """Serve with two keys, and score for a person first alone, then beside a trainer's burst."""
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write(f"{TRAINER}\n{PERSON}\n")
        keys.flush()
        secured = ["--api-key-file", keys.name, "--open-metrics", *flags]
        with service(bundle, flags=secured) as server:
            return asyncio.run(_measure(server, texts, num_sequences, idle_requests))


async def _measure(server: Server, texts: Sequence[str], num_sequences: int, idle_requests: int) -> Burst:
    client = Client(server.url)
    idle = [await ask(client, server.url, texts[number % len(texts)]) for number in range(idle_requests)]
    before = _calls(server)
    trainer = asyncio.create_task(send_burst(client, server.url, texts, num_sequences))
    busy = []
    while not trainer.done():
        busy.append(await ask(client, server.url, texts[len(busy) % len(texts)]))
    await trainer
    seconds, calls = (after - since for after, since in zip(_calls(server), before, strict=True))
    client.close()
    idle_s, busy_s = ([seconds for seconds in asked if seconds is not None] for asked in (idle, busy))
    return Burst(
        num_sequences=num_sequences,
        idle_p99_s=percentile(idle_s, 0.99),
        busy_p50_s=percentile(busy_s, 0.5),
        busy_p99_s=percentile(busy_s, 0.99),
        call_s=seconds / calls,
        num_asked=len(busy),
        num_failed=busy.count(None) + idle.count(None),
    )


def _calls(server: Server) -> tuple[float, float]:
    """Seconds and number of the engine's calls until now."""
    return server.metric("plaudit_infer_seconds_sum"), server.metric("plaudit_infer_seconds_count")


async def ask(client: Client, url: str, text: str) -> float | None:
    """How long a person waits for one score, in seconds; None: there is none."""
    started = time.perf_counter()
    document = {"items": [{"text": text}]}
    answer = await client.send(post(url, document, headers={"Authorization": f"Bearer {PERSON}"}))
    return time.perf_counter() - started if answer.status == 200 else None


async def send_burst(client: Client, url: str, texts: Sequence[str], num_sequences: int) -> None:
    """Score many texts, no two alike, as a trainer's client does: so many requests at once, and again where refused."""
    starts = iter(range(0, num_sequences, REQUEST_SEQUENCES))

    async def work() -> None:
        for start in starts:
            numbers = range(start, min(start + REQUEST_SEQUENCES, num_sequences))
            items = [{"text": f"{number} {texts[number % len(texts)]}"} for number in numbers]
            request = post(url, {"items": items}, headers={"Authorization": f"Bearer {TRAINER}"})
            attempt = 0
            while (answer := await client.send(request)).status == 429:
                await asyncio.sleep(backoff_s(attempt, answer.header("Retry-After"), 0.5))
                attempt += 1
            if answer.status != 200:
                raise RuntimeError(f"the trainer's request was answered {answer.status}: {answer.body.decode()}")

    await asyncio.gather(*(work() for _ in range(TRAINER_REQUESTS)))
