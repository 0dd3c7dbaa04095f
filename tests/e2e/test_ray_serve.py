"""The service on Ray Serve, as `serve run` starts it from deploy/ray/serve.yaml on a cluster of two nodes.

Both nodes are on this machine, each with room for one replica. Runs where Ray is installed: `make test-all`.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml
from replica_processes import WatchedNetwork, free_port

from plaudit_client import RewardClient
from plaudit_service.errors import SettingsError
from plaudit_service.testing import score_by_hand

pytest.importorskip("ray")
torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"
START_TIMEOUT_S = 180


def ray_command(name, *arguments):
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


@contextlib.contextmanager
def running(command, log, env):
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition, processes, log, timeout_s=START_TIMEOUT_S):
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            pytest.fail(f"it did not come to this: {log.read_text()[-4000:]}")
        time.sleep(0.05)


@dataclass
class Cluster:
    """A Ray cluster, and what runs `serve` against it."""

    env: dict
    port: int
    metrics_ports: list
    folder: Path

    @contextlib.contextmanager
    def serve(self, bundle, *, num_replicas=1, route_prefix="/", env_vars=None, autoscaling=None, ready=True, **args):
        """Run the shipped config with these changes, until every replica is ready."""
        http_port = free_port()
        log = self.folder / f"{http_port}.log"
        app = Application(f"http://127.0.0.1:{http_port}{route_prefix.rstrip('/')}", log)
        config = yaml.safe_load(CONFIG.read_text())
        config["proxy_location"] = "HeadOnly"
        config["http_options"]["port"] = http_port
        (application,) = config["applications"]
        application["route_prefix"] = route_prefix
        application["runtime_env"]["env_vars"] |= env_vars or {}
        application["args"] |= {"bundles": [str(bundle)], **args}
        (deployment,) = application["deployments"]
        deployment["ray_actor_options"]["num_cpus"] = 1
        replicas = {"min_replicas": num_replicas, "max_replicas": num_replicas}
        deployment["autoscaling_config"] |= {**replicas, **(autoscaling or {})}
        with running(self._command(config), log, self.env) as process:
            if ready:
                wait_until(lambda: len(app.pids("ready")) >= num_replicas and app.answers(), [process], log)
            yield app

    def update(self, app, **args):
        """Deploy the config of a running application again, with other arguments."""
        file = self.folder / f"{urlsplit(app.url).port}.yaml"
        config = yaml.safe_load(file.read_text())
        config["applications"][0]["args"] |= args
        subprocess.run([*self._command(config), "--non-blocking"], env=self.env, check=True, capture_output=True)

    def _command(self, config):
        file = self.folder / f"{config['http_options']['port']}.yaml"
        file.write_text(yaml.safe_dump(config))
        return ray_command("serve", "run", "--address", f"127.0.0.1:{self.port}", file)


@dataclass
class Application:
    """The running application; its replicas' log lines are in `log`, each with the replica's process id."""

    url: str
    log: Path

    def pids(self, event):
        """The processes that logged an event."""
        found = re.findall(rf'ServeReplica:\S+ pid=(\d+)\S* {{.*"event": "{event}"', self.log.read_text())
        return {int(pid) for pid in found}

    def answers(self):
        try:
            return httpx2.get(f"{self.url}/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def post(self, body, **options):
        return httpx2.post(f"{self.url}/score", content=body, timeout=120, **options)

    def score(self, *texts, **options):
        return self.post(json.dumps({"items": [{"text": text} for text in texts]}), **options)


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets have their paths under it
    port, metrics_ports = free_port(), [free_port(), free_port()]
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }
    common = ["--block", "--num-cpus", 1, "--object-store-memory", 100 << 20, "--metrics-export-port"]
    head = ["--head", "--port", port, "--temp-dir", folder, "--include-dashboard", "false", *common, metrics_ports[0]]
    other = ["--address", f"127.0.0.1:{port}", "--include-log-monitor", "false", *common, metrics_ports[1]]
    log = folder / "nodes.log"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes = []
        for arguments in (head, other):
            nodes.append(stack.enter_context(running(ray_command("ray", "start", *arguments), log, env)))
            wait_until(lambda: log.read_text().count("Ray runtime started") == len(nodes), nodes, log)
        yield Cluster(env, port, metrics_ports, folder)


WORDS = ("good", "fine", "bad", "awful")
ITEMS = [" ".join(WORDS[number // 4**place % 4] for place in range(6)) for number in range(400)]
EXPECTED = [score_by_hand(text) for text in ITEMS]


def test_a_replica_that_is_killed_under_load_loses_nothing_and_is_replaced(cluster, tiny_bundle):
    with cluster.serve(tiny_bundle(), num_replicas=2) as app:
        dies, stays = app.pids("ready")

        def kill_in_the_middle(number):
            if number == 20:
                os.kill(dies, signal.SIGKILL)

        with RewardClient(app.url, max_items_per_request=4, transport=WatchedNetwork(kill_in_the_middle)) as client:
            assert client.score(ITEMS).floats == EXPECTED
            assert {dies, stays} <= app.pids("request")
            wait_until(lambda: len(app.pids("ready")) == 3, [], app.log)
            (new,) = app.pids("ready") - {dies, stays}
            wait_until(lambda: client.score(ITEMS).floats == EXPECTED and new in app.pids("request"), [], app.log)


def test_an_update_under_load_fails_no_score(cluster, tiny_bundle):
    with cluster.serve(tiny_bundle(), num_replicas=2) as app, ThreadPoolExecutor(1) as operator:
        old = app.pids("ready")
        with RewardClient(app.url, max_items_per_request=4) as client:
            update = operator.submit(cluster.update, app, max_batch_tokens=512)
            wait_until(
                lambda: client.score(ITEMS).floats == EXPECTED and len(app.pids("request") - old) == 2, [], app.log
            )
            update.result()


def test_answers_and_refusals_pass_through_the_proxy_as_they_are(cluster, tiny_bundle):
    settings = {
        "allow_unauthenticated": False,
        "max_body_bytes": 1000,
        "max_queued_sequences": 3,
        "max_batch_tokens": 1,
    }
    keys = {"PLAUDIT_API_KEYS": "secret"}
    with cluster.serve(tiny_bundle(), route_prefix="/rm", env_vars=keys, dialects="slime", **settings) as app:
        refused = app.score("good")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        key = {"Authorization": "Bearer secret"}
        scored = app.score("good", headers={**key, "X-Request-Id": "mine"})
        assert scored.json()["results"][0]["score"] == 1.0
        assert scored.headers.get_list("x-request-id") == ["mine"]
        assert scored.headers["server-timing"].startswith("queue;dur=")
        refusals = {
            "invalid-request": app.post("{}", headers=key),
            "not-json": app.post("{", headers=key),
            "too-large": app.post(b"x" * 1001, headers=key),
            "expired": app.score("good", headers={**key, "X-Request-Timeout-S": "0"}),
        }
        chunked = app.post(iter([b"x" * 600, b"x" * 600]), headers=key)
        for slug, answer in [*refusals.items(), ("too-large", chunked)]:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == f"urn:plaudit:{slug}"
            assert answer.json()["status"] == answer.status_code
        assert httpx2.get(f"{app.url}/docs", headers=key).status_code == 200
        body = {"prompt": "good", "response": " bad"}
        assert httpx2.post(f"{app.url}/slime", json=body, headers=key).json() == 0.0
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda text: app.score(text, "good " + text, headers=key), ITEMS))
        shed = [answer for answer in answers if answer.status_code != 200]
        assert {(answer.status_code, answer.headers["retry-after"]) for answer in shed} == {(429, "1")}


def test_a_client_that_leaves_takes_its_sequences_out_and_rays_metrics_say_so_for_each_replica(cluster, tiny_bundle):
    def samples(name):
        texts = [httpx2.get(f"http://127.0.0.1:{port}/metrics").text for port in cluster.metrics_ports]
        found = re.findall(rf'^ray_plaudit_{name}{{.*replica="\w+".*}} (\S+)$', "\n".join(texts), flags=re.MULTILINE)
        return [float(value) for value in found]

    async def ask_and_leave(url):
        async with httpx2.AsyncClient(timeout=60) as client:
            items = [{"text": f"{'good ' * (number % 50)}{text}"} for number, text in enumerate(ITEMS * 10)]
            ask = asyncio.create_task(client.post(f"{url}/score", json={"items": items}))
            while "plaudit_queued_sequences 0.0" in (await client.get(f"{url}/metrics")).text:
                assert not ask.done()
            ask.cancel()
            await asyncio.gather(ask, return_exceptions=True)

    with cluster.serve(tiny_bundle(), max_batch_tokens=1, max_sequences_per_request=4000) as app:
        asyncio.run(ask_and_leave(app.url))
        wait_until(lambda: sum(samples("cancelled_total")) > 0 and samples("queued_sequences") == [0], [], app.log)


def test_a_bundle_that_does_not_give_its_reference_scores_is_never_served(cluster, tiny_bundle):
    with cluster.serve(tiny_bundle(golden_offset=0.5), ready=False) as app:
        wait_until(lambda: "does not give its reference scores" in app.log.read_text(), [], app.log)
        assert not app.answers()


def test_a_checkpoint_is_exported_once_though_two_replicas_start_at_once(cluster, tmp_path):
    """The nodes are on one machine here, and share the cache."""
    from plaudit_export.quiet import quiet
    from plaudit_export.testing import tiny_encoder_checkpoint

    checkpoint, cache = tiny_encoder_checkpoint(tmp_path / "checkpoint"), tmp_path / "cache"
    text = "how do i boil an egg"
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        expected = model(**tokenizer(text, return_tensors="pt")).logits.item()
    with cluster.serve(checkpoint, num_replicas=2, export_cache=str(cache)) as app, RewardClient(app.url) as client:
        assert client.score([text]).floats == pytest.approx([expected], abs=1e-5)
    assert len(list(cache.rglob("bundle.json"))) == 1
    assert app.log.read_text().count(f"loading {checkpoint} ...") == 1


def test_replicas_are_added_when_tokens_are_queued(cluster, tiny_bundle):
    few = {"max_replicas": 2, "upscale_delay_s": 0, "look_back_period_s": 2, "metrics_interval_s": 1}
    few["policy"] = {
        "policy_function": "plaudit_service.ray_serve:QueuedTokens",
        "policy_kwargs": {"target_tokens": 50},
    }
    with cluster.serve(tiny_bundle(), autoscaling=few, max_batch_tokens=1) as app, RewardClient(app.url) as client:
        wait_until(lambda: client.score(ITEMS).floats == EXPECTED and len(app.pids("ready")) == 2, [], app.log)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args.bundles: give a list"),
        ({"bundles": ["rm"], "port": 1}, "args.port: the sockets are Ray Serve's; set http_options.port instead"),
        ({"bundles": ["rm"], "batch": 1}, "args.batch: is neither `bundles` nor a setting of plaudit-serve"),
        ({"bundles": ["rm"], "max_batch_tokens": 0}, "--max-batch-tokens: 0, but the minimum is 1"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_in_one_line(args, message):
    from plaudit_service.ray_serve import build

    with pytest.raises(SettingsError, match=re.escape(message)):
        build(args)
