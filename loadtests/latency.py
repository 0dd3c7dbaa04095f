"""Latency at half load, and what an idle single request costs beyond the model's own time."""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from checkpoints import Kind, subject
from figures import Row, percentile
from http_load import Answer, Client, closed_loop, open_loop, poisson_arrivals, post
from servers import Server, service
from texts import read_texts
from throughput import EXACT, PLAIN, servers_of
from tqdm import tqdm

from plaudit_service import Scorer

NUM_TEXTS = 128


def measure_latency(kind: Kind, rounds: int, seconds: float) -> list[Row]:
    """Single texts arriving at random times, at half of what the service can take: p50 and p99 of each server."""
    model = subject(kind)
    texts = read_texts(model.bundle)
    with servers_of(model) as servers:
        del servers["plain handler float32"]  # half of the service's load is more than it can take
        requests = {
            name: _single_requests(name, server, texts.singles(0, NUM_TEXTS)) for name, server in servers.items()
        }
        started = time.perf_counter()
        asyncio.run(closed_loop(servers[EXACT].url, requests[EXACT], connections=64))
        rate = NUM_TEXTS / (time.perf_counter() - started) / 2
        latencies: dict[str, list[float]] = {name: [] for name in servers}
        runs = [(number, name) for number in range(rounds) for name in servers]
        for number, name in tqdm(runs, desc=f"{kind}: latency", unit="run", file=sys.stderr):
            due = poisson_arrivals(rate, seconds / rounds, seed=number)
            sent = [requests[name][at % NUM_TEXTS] for at in range(len(due))]
            answers = asyncio.run(open_loop(servers[name].url, sent, due))
            latencies[name] += [_ok(answer).seconds for answer in answers]
    return [
        Row(
            f"{kind}: latency {which} at {rate:.1f} requests/s",
            name,
            1000 * percentile(values, share),
            "ms",
            {PLAIN: percentile(values, share) / percentile(latencies[PLAIN], share)},
            {"requests": len(values)},
        )
        for which, share in (("p50", 0.5), ("p99", 0.99))
        for name, values in latencies.items()
    ]


def measure_idle(num_requests: int) -> list[Row]:
    """One request at a time to an idle service, against the time that the model itself takes.

    The model's time is told by the service (`infer` of Server-Timing), and measured in process on the same text.
    """
    model = subject("encoder")
    texts = read_texts(model.bundle).singles(1, num_requests)
    with service(model.bundle) as server:
        requests = _single_requests(EXACT, server, texts)
        answers = [_ok(answer) for answer in asyncio.run(closed_loop(server.url, requests, connections=1))]
        scorer = Scorer(model.bundle)
        pairs = asyncio.run(_in_turn(server.url, requests, texts, scorer))
    beyond_told = [answer.seconds - answer.server_timing()["infer"] for answer in answers]
    beyond_in_process = [served - alone for served, alone in pairs]
    part = "encoder: idle single"
    return [
        Row(part, "beyond infer of Server-Timing", 1000 * statistics.median(beyond_told), "ms"),
        Row(part, "beyond Scorer in process", 1000 * statistics.median(beyond_in_process), "ms"),
        Row(part, "the whole request", 1000 * statistics.median(answer.seconds for answer in answers), "ms"),
    ]


async def _in_turn(
    url: str, requests: Sequence[bytes], texts: Sequence[str], scorer: Scorer
) -> list[tuple[float, float]]:
    """Seconds of each text over HTTP and in process, one after the other, so that both see the same machine."""
    client = Client(url)
    pairs = []
    for request, text in tqdm(list(zip(requests, texts, strict=True)), desc="encoder: idle", file=sys.stderr):
        answer = _ok(await client.send(request))
        started = time.perf_counter()
        scorer.score([text])
        pairs.append((answer.seconds, time.perf_counter() - started))
    client.close()
    return pairs


def _single_requests(name: str, server: Server, texts: Sequence[str]) -> list[bytes]:
    documents: list[Any] = [
        {"texts": [text]} if name.startswith("plain") else {"items": [{"text": text}]} for text in texts
    ]
    return [post(server.url, document) for document in documents]


def _ok(answer: Answer) -> Answer:
    assert answer.status == 200, f"HTTP {answer.status} {answer.body[:300]!r}"
    return answer
