"""A real Prometheus watches a service under load, wrong and sick ones, and a trainer that an engine samples for."""

import json
import math
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from fake_pooling import fake_pooling
from fake_vllm import fake_engines
from ppo_runs import free_port, training, write_config, write_policy
from prometheus_process import Prometheus, faster, running_prometheus, wait_until

from plaudit_ppo import load_policy
from plaudit_service.testing import RunningService, running_service, write_tiny_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is not installed; on Debian and Ubuntu: apt-get install prometheus",
    ),
]
DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "plaudit.json").read_text())
WORDS = ("good", "fine", "bad", "awful", "so", "very")


@dataclass
class Watched:
    """What runs, and a client for the load."""

    prometheus: Prometheus
    service: RunningService
    wrong: RunningService
    client: httpx2.Client

    def post(self, body):
        self.client.post(f"{self.service.url}/score", json=body)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    trainer_port = free_port()
    with ExitStack() as stack:
        right = write_tiny_bundle(folder / "right")
        flags = ["--max-queued-sequences", "48", "--num-threads", "1", "--dialects", "vllm"]
        service = stack.enter_context(running_service(right, flags=flags))
        wrong = stack.enter_context(running_service(write_tiny_bundle(folder / "wrong", golden_offset=1.0)))
        sick = stack.enter_context(fake_pooling([0.0]))
        sick.fault = "sick"
        behind = stack.enter_context(
            running_service(
                write_tiny_bundle(folder / "engine", engine="vllm"),
                flags=["--runtime", "vllm", "--engine-url", sick.url],
            )
        )
        policy = write_policy(folder / "policy")
        (engine,) = stack.enter_context(fake_engines(*load_policy(policy)))
        config = trainer_config(folder, policy, service.url, engine.url, trainer_port)
        process = stack.enter_context(training("--config", config))
        targets = {
            "plaudit_serve": [instance(service), instance(wrong), instance(behind)],
            "plaudit_ppo": [f"127.0.0.1:{trainer_port}"],
        }
        prometheus = stack.enter_context(running_prometheus(folder / "prometheus", free_port(), **targets))
        client = stack.enter_context(httpx2.Client(timeout=60))
        watched = Watched(prometheus, service, wrong, client)
        for body in (answered, cut, too_long, infinite, malformed):
            stack.enter_context(repeating(lambda body=body: watched.post(body()), pause_s=0.05))
        yield watched
        assert process.poll() is None, process.stderr.read()


def instance(service):
    """As Prometheus names it."""
    return service.url.removeprefix("http://")


def trainer_config(folder, policy, url, engine_url, port):
    (folder / "prompts.jsonl").write_text('{"prompt": "good"}\n{"prompt": "so bad"}\n')
    return write_config(
        folder / "run.toml", policy=str(policy), prompts=str(folder / "prompts.jsonl"),
        output=str(folder / "run"), scorer_urls=(url,), eval_scorer_urls=(url,), metrics_port=port,
        iterations=1_000_000, rollout_batch_size=8, rollout_micro_batch_size=4, max_completion_tokens=8,
        missing_eos="off", checkpoint_every=0, sample_every=0, learning_rate=1e-6, max_masked_share=1.0,
        sampler="vllm", engine_urls=(engine_url,), temperature=1.0,
    )  # fmt: skip


def words(count):
    return " ".join(random.choices(WORDS, k=count))


def answered():
    return {"items": [{"text": words(random.randint(1, 20))} for _ in range(4)]}


def cut():
    return {"items": [{"text": words(80)}], "truncation": "left"}


def too_long():
    return {"items": [{"text": words(80)}]}


def infinite():
    return {"items": [{"text": f"infinite {words(3)}"}]}


def malformed():
    return {"items": "no list"}


def burst():
    return {"items": [{"text": words(60)} for _ in range(40)]}


@contextmanager
def repeating(call, pause_s=0.0):
    """Calls again and again in a thread, until the block ends; its error is the block's."""
    stop = threading.Event()

    def repeat():
        while not stop.wait(pause_s):
            call()

    with ThreadPoolExecutor(1) as pool:
        repeated = pool.submit(repeat)
        try:
            yield
        finally:
            stop.set()
        repeated.result()


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def as_grafana_asks(expression):
    """The query with the dashboard's variables filled in."""
    expression = faster(expression)
    for variable, value in (("$job", "plaudit-serve"), ("$model", "tiny"), ("$__rate_interval", "10s")):
        expression = expression.replace(variable, value)
    return expression


def test_every_panel_of_the_dashboard_has_data(watched):
    expressions = [as_grafana_asks(target["expr"]) for panel in panels() for target in panel["targets"]]
    assert len(expressions) > 50
    assert not any("$" in expression for expression in expressions)

    def without_data():
        return [
            expression
            for expression in expressions
            if not any(math.isfinite(value) for _, value in watched.prometheus.query(expression))
        ]

    wait_until(lambda: not without_data(), without_data)


def test_the_queue_alert_fires_under_overload_and_clears_when_the_load_ends(watched):
    def fires():
        return ("PlauditQueueFull", None) in watched.prometheus.firing()

    def shed():
        return watched.prometheus.query("job:plaudit_requests_shed:ratio_rate5m")

    assert not fires()
    with ExitStack() as overload:
        for _ in range(8):
            overload.enter_context(repeating(lambda: watched.post(burst())))
        wait_until(fires, shed)
    wait_until(lambda: not fires(), shed)


def test_a_wrong_reward_model_is_told_of_its_replica_alone(watched):
    wrong = instance(watched.wrong)
    expected = {("PlauditParity", wrong), ("PlauditReplicaNotReady", wrong)}
    wait_until(lambda: expected <= watched.prometheus.firing(), watched.prometheus.firing)
    assert not {alert for alert in watched.prometheus.firing() if alert[1] == instance(watched.service)}


def test_what_is_wrong_with_texts_is_told_and_burns_no_budget(watched):
    expected = {("PlauditNonFinite", "tiny"), ("PlauditTruncation", None)}
    wait_until(lambda: expected <= watched.prometheus.firing(), watched.prometheus.firing)
    refused = 'sum(job_outcome:plaudit_requests:rate5m{outcome="invalid-request"})'
    assert watched.prometheus.query(refused)[0][1] > 1
    assert watched.prometheus.query("job:plaudit_requests_failed:ratio_rate1h")[0][1] == 0
    assert "PlauditAvailabilityBurn" not in {name for name, _ in watched.prometheus.firing()}
