"""Latency and goodput against offered load, up to three times what the service can take, as one HTML page.

Single texts arrive at random times from clients that retry with backoff until their deadline. Goodput: requests per
second that got their score in time. Capacity is measured first, by 64 clients that wait for their answers; at the end,
right after the highest load, half of it is offered once more. Then a person asks for one score after the other beside a
trainer's burst with another key. Exit code 1: goodput at the highest load is less than 0.9 of its peak, after it not
everything is scored in time, or the person waits longer than in an idle service and two full batches more.

    make load-report        or        .venv/bin/python loadtests/load_report.py --help
"""

import argparse
import asyncio
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from burst import measure_burst
from checkpoints import WORK, minilm_bundle
from figures import percentile
from http_load import Client, closed_loop, poisson_arrivals, post
from load_policy import backoff_s
from markupsafe import Markup
from matplotlib.figure import Figure
from servers import Server, end_on_sigterm, service
from texts import read_texts
from tqdm import tqdm

from plaudit_ppo.runs.charts import add_legend, draw_in_ink, to_svg
from plaudit_ppo.runs.page import render_page

LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
LEAST_GOODPUT = 0.9
RECOVERY_LOAD = 0.5
RETRIED = {0, 429, 503}
NUM_TEXTS = 512
PAGE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Attempted:
    """What became of one request, retries included; times in seconds since the load began."""

    due_s: float
    finished_s: float
    scored: bool
    num_shed: int

    @property
    def seconds(self) -> float:
        """From when it was due."""
        return self.finished_s - self.due_s


@dataclass(frozen=True)
class Step:
    """One offered load. Rates are per second; latencies are of requests that got their score in time."""

    offered: float
    goodput: float
    p50_s: float
    p99_s: float
    shed_per_request: float
    share_in_time: float


def main() -> int:
    """Load, step by step, and write the page; returns the exit code."""
    options = parse()
    bundle = options.bundle or minilm_bundle()
    texts = read_texts(bundle).singles(0, NUM_TEXTS)
    with service(bundle) as server:
        capacity = measure_capacity(server, texts)
    # What may wait is what can be computed in half of the time that a client has.
    queue = max(1, round(capacity * options.deadline_s / 2))
    flags = ["--max-queued-sequences", str(queue), *options.flag]
    steps = []
    with service(bundle, flags=flags) as server:
        for load in tqdm(options.loads, desc="load", unit="step", file=sys.stderr):
            seconds = options.overload_s if load == max(options.loads) else options.seconds
            steps.append(asyncio.run(run_step(server, texts, load * capacity, seconds, options.deadline_s)))
        after = asyncio.run(run_step(server, texts, RECOVERY_LOAD * capacity, options.seconds, options.deadline_s))
    burst = measure_burst(
        bundle, texts, num_sequences=options.burst, idle_requests=options.idle_requests, flags=options.flag
    )
    share = steps[-1].goodput / max(step.goodput for step in steps)
    verdict = (
        f"goodput at {options.loads[-1]:g}x capacity is {share:.3f} of its peak (at least {LEAST_GOODPUT} wanted); "
        f"right after it, at {RECOVERY_LOAD:g}x, {after.share_in_time:.1%} were scored in time, "
        f"p99 {1000 * after.p99_s:.0f} ms; {burst.describe()}"
    )
    setting = f"capacity {capacity:.1f} requests/s, deadline {options.deadline_s:g} s, {' '.join(flags)}"
    print(f"{setting}\n{as_text(steps)}\n{verdict}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(steps, capacity, setting, verdict), encoding="utf-8")
    print(f"report: {options.output}", file=sys.stderr)
    return int(share < LEAST_GOODPUT or after.share_in_time < 1 or not burst.ok)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; loads in rising order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each step (default: %(default)s)")
    parser.add_argument("--overload-s", type=float, default=60.0, help="of the highest load (default: %(default)s)")
    parser.add_argument("--deadline-s", type=float, default=5.0, help="until a score is useless (default: %(default)s)")
    parser.add_argument("--loads", type=_loads, default=list(LOADS), help="shares of the capacity, 0.5,1,3 for example")
    parser.add_argument(
        "--burst", type=int, default=8192, help="sequences of the trainer's burst (default: %(default)s)"
    )
    parser.add_argument(
        "--idle-requests", type=int, default=200, help="of the person before the burst (default: %(default)s)"
    )
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: the MiniLM encoder, exported for this)")
    parser.add_argument("--flag", action="append", default=[], help="one more flag of plaudit-serve, as --flag=--x=1")
    parser.add_argument("--output", type=Path, default=WORK / "load-report.html", help="default: %(default)s")
    return parser.parse_args(arguments)


def _loads(text: str) -> list[float]:
    loads = sorted(float(part) for part in text.split(","))
    if loads[0] <= 0 or not all(map(math.isfinite, loads)):
        raise argparse.ArgumentTypeError(f"{text}: a load is a number above 0")
    return loads


def measure_capacity(server: Server, texts: Sequence[str]) -> float:
    """Singles per second that 64 waiting clients get."""
    requests = [post(server.url, {"items": [{"text": text}]}) for text in texts]
    asyncio.run(closed_loop(server.url, requests[:32], connections=32))  # warm-up
    started = time.perf_counter()
    asyncio.run(closed_loop(server.url, requests, connections=64))
    return len(requests) / (time.perf_counter() - started)


async def run_step(server: Server, texts: Sequence[str], rate: float, seconds: float, deadline_s: float) -> Step:
    """Offer a load for some seconds."""
    client = Client(server.url)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    source = random.Random(round(1000 * rate))

    async def one(number: int, due: float) -> Attempted:
        await asyncio.sleep(begin + due - loop.time())
        return await persist(client, server.url, texts[number % len(texts)], begin, due, deadline_s, source)

    due_s = poisson_arrivals(rate, seconds, seed=round(rate))
    attempted = await asyncio.gather(*(one(number, due) for number, due in enumerate(due_s)))
    client.close()
    return summarize(attempted, seconds)


async def persist(
    client: Client, url: str, text: str, begin: float, due_s: float, deadline_s: float, source: random.Random
) -> Attempted:
    """Send one text until it is scored, its deadline has passed, or the next attempt would be after it."""
    loop = asyncio.get_running_loop()
    end = begin + due_s + deadline_s
    num_shed = 0
    for attempt in range(1000):
        left_s = end - loop.time()
        if left_s <= 0:
            break
        headers = {"X-Request-Timeout-S": f"{left_s:.3f}"}
        answer = await client.send(post(url, {"items": [{"text": text}]}, headers=headers), timeout_s=left_s)
        if answer.status not in RETRIED:
            scored = answer.status == 200 and answer.json()["results"][0]["status"] == "ok"
            return Attempted(due_s, answer.finished - begin, scored, num_shed)
        num_shed += answer.status != 0
        pause_s = backoff_s(attempt, answer.header("Retry-After"), source.random())
        if loop.time() + pause_s >= end:
            break
        await asyncio.sleep(pause_s)
    return Attempted(due_s, loop.time() - begin, False, num_shed)


def summarize(attempted: Sequence[Attempted], seconds: float) -> Step:
    """Figures of one step; goodput counts what was scored while the load lasted."""
    in_time = [each.seconds for each in attempted if each.scored]
    goodput = sum(each.scored and each.finished_s <= seconds for each in attempted) / seconds
    return Step(
        offered=len(attempted) / seconds,
        goodput=goodput,
        p50_s=percentile(in_time, 0.5) if in_time else math.nan,
        p99_s=percentile(in_time, 0.99) if in_time else math.nan,
        shed_per_request=sum(each.num_shed for each in attempted) / max(1, len(attempted)),
        share_in_time=len(in_time) / max(1, len(attempted)),
    )


HEADINGS = ("offered/s", "goodput/s", "p50 ms", "p99 ms", "429 per request", "scored in time")


def cells(step: Step) -> list[str]:
    """A step as the table shows it."""
    return [
        f"{step.offered:.1f}",
        f"{step.goodput:.1f}",
        f"{1000 * step.p50_s:.0f}",
        f"{1000 * step.p99_s:.0f}",
        f"{step.shed_per_request:.2f}",
        f"{step.share_in_time:.1%}",
    ]


def as_text(steps: Sequence[Step]) -> str:
    """The table for the terminal."""
    return "\n".join("".join(f"{cell:>17}" for cell in line) for line in [HEADINGS, *map(cells, steps)])


def page(steps: Sequence[Step], capacity: float, setting: str, verdict: str) -> str:
    """The page: one file without anything from elsewhere."""
    chart = plot(steps, capacity)
    rows = map(cells, steps)
    return render_page(PAGE, verdict=verdict, setting=setting, chart=chart, headings=HEADINGS, rows=rows)


def plot(steps: Sequence[Step], capacity: float) -> Markup:
    """Goodput and latencies over offered load, as SVG."""
    offered = [step.offered for step in steps]
    figure = Figure(figsize=(8, 7))
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(offered, [step.goodput for step in steps], "o-", label="goodput")
    above.plot(offered, [min(step.offered, capacity) for step in steps], ":", color="grey", label="what could be")
    above.set_ylabel("requests/s")
    below.plot(offered, [1000 * step.p99_s for step in steps], "o-", color="C3", label="p99")
    below.plot(offered, [1000 * step.p50_s for step in steps], "o-", color="C1", label="p50")
    below.set(ylabel="ms", yscale="log", xlabel="offered requests/s")
    for panel in (above, below):
        panel.axvline(capacity, color="grey", linewidth=0.8)
        add_legend(panel)
        draw_in_ink(panel)
    figure.tight_layout()
    return to_svg(figure)


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
