"""Faults of whole processes: a signal under load, a rolling restart, a bundle that was damaged."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from plaudit_service.testing import score_by_hand


def metric(service, name):
    lines = httpx2.get(f"{service.url}/metrics", timeout=30).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_sigterm_under_load_lets_every_admitted_request_finish_and_exits_0(serve, causal_bundle):
    with serve(causal_bundle, flags=["--max-batch-tokens", "32", "--no-share-prefixes"]) as service:
        bodies = [{"items": [{"text": f"{a} {b} good " * 6} for b in range(400)]} for a in range(4)]
        before = metric(service, "plaudit_tokenize_seconds_count")
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(httpx2.post, f"{service.url}/score", json=body, timeout=60) for body in bodies]
            while metric(service, "plaudit_tokenize_seconds_count") < before + 4:
                assert service.process.poll() is None
            assert not any(answer.done() for answer in answers), "answered before the signal could come"
            service.process.send_signal(signal.SIGTERM)
            answers = [answer.result() for answer in answers]
        assert service.process.wait(60) == 0
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {result["status"] for answer in answers for result in answer.json()["results"]} == {"ok"}
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{service.url}/healthz")


def test_requests_that_outlast_the_grace_period_are_answered_503_so_that_they_are_sent_elsewhere(serve, causal_bundle):
    flags = ["--max-batch-tokens", "32", "--drain-timeout-s", "0"]
    with serve(causal_bundle, flags=flags) as service:
        body = {"items": [{"text": f"good {number} " * 12} for number in range(1000)]}
        with ThreadPoolExecutor(1) as pool:
            open_request = pool.submit(httpx2.post, f"{service.url}/score", json=body, timeout=60)
            while metric(service, "plaudit_queued_sequences") == 0:
                assert not open_request.done(), "answered before the signal could come"
            service.process.send_signal(signal.SIGTERM)
            answer = open_request.result()
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:plaudit:unavailable")
        assert answer.headers["retry-after"] == "1"
        assert service.process.wait(30) == 0


def test_a_rolling_restart_of_two_replicas_costs_a_client_that_retries_no_score(serve, tiny_bundle):
    bundle = tiny_bundle()
    with ExitStack() as stack:
        replicas = [stack.enter_context(serve(bundle)) for _ in range(2)]
        urls = [replica.url for replica in replicas]
        restarted = threading.Event()
        client = stack.enter_context(httpx2.Client(timeout=30))

        def score(text):
            for at in [0, 1] * 500:
                try:
                    answer = client.post(f"{urls[at]}/score", json={"items": [{"text": text}]})
                except httpx2.TransportError:
                    continue
                if answer.status_code == 200:
                    return answer.json()["results"][0]["score"]
                assert answer.status_code == 503
            raise AssertionError("no replica answered")

        def keep_scoring(number):
            count = 0
            while not restarted.is_set():
                text = "good " * ((number + count) % 9) + "bad fine"
                assert score(text) == score_by_hand(text)
                count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(keep_scoring, number) for number in range(4)]
            try:
                for at in range(2):
                    assert replicas[at].stop() == 0
                    urls[at] = stack.enter_context(serve(bundle)).url
            finally:
                restarted.set()
            assert min(worker.result() for worker in workers) > 10


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def link(path):
    target = path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(target)


def manifest(**changes):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


DAMAGES = [
    ("model.onnx", truncate, "model.onnx has sha256"),
    ("model.onnx", Path.unlink, "model.onnx"),
    ("tokenizer.json", Path.unlink, "tokenizer.json"),
    ("tokenizer.json", truncate, "tokenizer.json has sha256"),
    ("golden.jsonl", truncate, "golden.jsonl has sha256"),
    ("bundle.json", truncate, "bundle.json"),
    ("bundle.json", Path.unlink, "bundle.json"),
    ("bundle.json", manifest(format=2), "format"),
    ("tokenizer.json", link, "tokenizer.json"),
    ("model.onnx", link, "model.onnx"),
]


@pytest.mark.parametrize(("file", "damage", "said"), DAMAGES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_damaged_bundle_is_refused_with_exit_code_2_and_one_line_that_names_the_file(tiny_bundle, file, damage, said):
    bundle = tiny_bundle()
    damage(bundle / file)
    command = [Path(sys.executable).with_name("plaudit-serve"), bundle, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("plaudit-serve: error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_read_only_bundle_on_a_working_directory_that_is_gone_is_served(serve, tiny_bundle, tmp_path, monkeypatch):
    bundle = tiny_bundle()
    for path in (*bundle.iterdir(), bundle):
        path.chmod(0o555 if path.is_dir() else 0o444)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    shutil.rmtree(gone)
    with serve(bundle) as service:
        assert (
            httpx2.post(f"{service.url}/score", json={"items": [{"text": "good"}]}).json()["results"][0]["score"] == 1.0
        )
