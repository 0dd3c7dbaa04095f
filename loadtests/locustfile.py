"""locust scenarios, each a user class: name one on the command line.

    locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8000 --users 4 --run-time 1m PpoBurst

Closed loop (a user waits for its answer): `PpoBurst`, `Groups`, `MixedLengths`, and `Dialects`, for the routes of TEI,
SGLang and NeMo-Gym. Open loop (requests come at random times, `--rate` of them per second from all users together,
whatever became of those before): `SteadySingles`, `Overload`. An answer is a failure unless every sequence has a score.
Exit code 1: the SLO of `--slo-p99-s` or `--slo-failures` is not kept.
"""

import random
import sys
import time
from argparse import ArgumentParser
from typing import Any

import gevent
from gevent.pool import Group, Pool
from load_policy import backoff_s
from locust import FastHttpUser, between, constant, events, task
from locust.env import Environment

WORDS = ["the", "answer", "is", "not", "what", "you", "asked", "for", "but", "here", "it", "comes"]
SHED = (429, 503)


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Options of these scenarios."""
    parser.add_argument("--rate", type=float, default=20.0, help="open loop: requests per second of all users together")
    parser.add_argument("--deadline-s", type=float, default=5.0, help="Overload: how long a client wants its score")
    parser.add_argument("--slo-p99-s", type=float, default=5.0, help="99 of 100 answers come within this time")
    parser.add_argument("--slo-failures", type=float, default=0.0, help="largest share of failed requests")


@events.quitting.add_listener
def check_slo(environment: Environment, **_: Any) -> None:
    """Set the exit code, and say what was broken."""
    options, total = environment.parsed_options, environment.stats.total
    breaches = []
    if not total.num_requests:
        breaches.append("no request was answered")
    if total.fail_ratio > options.slo_failures:
        breaches.append(f"{total.fail_ratio:.2%} of the requests failed, limit {options.slo_failures:.2%}")
    for entry in environment.stats.entries.values():
        p99_s = entry.get_response_time_percentile(0.99) / 1000
        if p99_s > options.slo_p99_s:
            breaches.append(f"{entry.name}: p99 is {p99_s:.2f} s, limit {options.slo_p99_s:.2f} s")
    for breach in breaches:
        print(f"SLO not kept: {breach}", file=sys.stderr)
    environment.process_exit_code = int(bool(breaches))


def words(low: int, high: int) -> str:
    """Between `low` and `high` random words."""
    return " ".join(random.choices(WORDS, k=random.randint(low, high)))


def group(longest_prompt: int = 120) -> dict[str, Any]:
    """One prompt with eight completions."""
    return {"prompt": words(10, longest_prompt), "completions": [" " + words(5, 60) for _ in range(8)]}


class Scoring(FastHttpUser):
    """Sends items, and fails what has no score."""

    abstract = True
    concurrency = 1024
    wait_time = constant(0)

    def score(self, name: str, *items: dict[str, Any]) -> None:
        """One request."""
        with self.client.post("/score", json={"items": items}, name=name, catch_response=True) as response:
            if response.status_code == 200 and any(result["status"] != "ok" for result in response.json()["results"]):
                response.failure("a sequence has no score")


class OpenLoop(Scoring):
    """Starts a request at each of its random times, without waiting for those before it."""

    abstract = True

    def on_start(self) -> None:
        """Begin the arrivals."""
        self._pool = Pool()
        self._due = time.monotonic()

    def on_stop(self) -> None:
        """Wait for what was sent."""
        self._pool.join(timeout=30)

    @task
    def arrive(self) -> None:
        """Wait for the next arrival, and send."""
        options = self.environment.parsed_options
        self._due += random.expovariate(options.rate / options.num_users)
        gevent.sleep(max(0.0, self._due - time.monotonic()))
        self._pool.spawn(self.send)

    def send(self) -> None:
        """One request of the scenario."""
        raise NotImplementedError


class SteadySingles(OpenLoop):
    """One completion at a time, at random times."""

    def send(self) -> None:
        """One prompt with one completion."""
        self.score("single", {"prompt": words(10, 60), "completion": " " + words(5, 80)})


class Groups(Scoring):
    """Workers that send a prompt with eight completions and wait for the scores."""

    @task
    def send(self) -> None:
        """One group."""
        self.score("group of 8", group())


class MixedLengths(Scoring):
    """Short and long texts, alone and many in a request."""

    @task(8)
    def short(self) -> None:
        """A few words."""
        self.score("short", {"text": words(1, 20)})

    @task(2)
    def long(self) -> None:
        """Near the limit of the model."""
        self.score("long", {"text": words(250, 400)})

    @task(1)
    def many(self) -> None:
        """32 texts of all lengths."""
        self.score("32 texts", *({"text": words(1, random.choice([10, 50, 300]))} for _ in range(32)))


class PpoBurst(Scoring):
    """A trainer: micro-batches of rollouts all at once, then a pause in which it generates."""

    wait_time = between(0.5, 1.5)

    @task
    def rollout_batch(self) -> None:
        """Four micro-batches of two groups each."""
        burst = Group()
        for _ in range(4):
            burst.spawn(self.score, "micro-batch of 16", group(60), group(60))
        burst.join()


class Dialects(FastHttpUser):
    """Clients of TEI, SGLang and NeMo-Gym in turn, on a service with `--dialects tei,sglang,nemo-gym`."""

    wait_time = constant(0)

    @task
    def send(self) -> None:
        """One request of each."""
        said = {"type": "message", "role": "assistant", "content": words(5, 60)}
        rollout = {"responses_create_params": {"input": words(5, 60)}, "response": {"output": [said]}}
        self.client.post("/predict", json={"inputs": [[words(5, 60)] for _ in range(8)], "raw_scores": True})
        self.client.post("/classify", json={"text": [words(5, 60) for _ in range(8)]})
        self.client.post("/v1/embeddings", json={"input": words(5, 60)})
        self.client.post("/verify", json=rollout)


class Overload(OpenLoop):
    """More than the service can take, from clients that retry with backoff until their deadline.

    A request that the service sheds (429, 503) is right; one that is neither answered nor shed has failed.
    """

    def send(self) -> None:
        """Try until the deadline."""
        end = time.monotonic() + self.environment.parsed_options.deadline_s
        document = {"items": [{"prompt": words(10, 60), "completion": " " + words(5, 80)}]}
        for attempt in range(100):
            left_s = end - time.monotonic()
            headers = {"X-Request-Timeout-S": f"{max(left_s, 0.001):.3f}"}
            with self.client.post(
                "/score", json=document, headers=headers, name="overload", catch_response=True
            ) as response:
                status = response.status_code
                if status in SHED:
                    response.request_meta["name"] = "overload, shed"
                if status in {*SHED, 504}:
                    response.success()
            if status not in SHED:
                return
            pause_s = backoff_s(attempt, response.headers.get("Retry-After"), random.random())
            if time.monotonic() + pause_s >= end:
                return
            gevent.sleep(pause_s)
