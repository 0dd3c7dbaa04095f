"""A service before an engine that is killed, stopped or ended under load, as processes over real sockets."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from replica_processes import WatchedNetwork, free_port

from plaudit_client import RewardClient
from plaudit_service.testing import VALUES, running_service, score_by_hand

FAKE = Path(__file__).parents[1] / "fake_pooling.py"
TABLE = json.dumps([value or 0.0 for value in VALUES.values()])
WORDS = ("good", "fine", "bad", "awful")
ITEMS = [" ".join(WORDS[number // 4**place % 4] for place in range(6)) for number in range(200)]
EXPECTED = [score_by_hand(text) for text in ITEMS]
_PATIENCE_S = 60


class EngineProcess:
    """An engine that keeps its port over restarts; use as a context manager."""

    def __init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.wait()

    def start(self):
        self.process = subprocess.Popen([sys.executable, FAKE, str(self.port), TABLE])

    def bring_back(self, number):
        if number == signal.SIGSTOP:
            self.process.send_signal(signal.SIGCONT)
        else:
            self.process.wait(_PATIENCE_S)
            self.start()


def wait_for(url, status):
    end = time.monotonic() + _PATIENCE_S
    while httpx2.get(url, timeout=_PATIENCE_S).status_code != status:
        assert time.monotonic() < end, f"{url} does not answer {status}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda number: number.name)
def test_an_engine_that_ends_or_stops_under_load_costs_a_client_that_retries_no_score(tiny_bundle, number):
    flags = ["--runtime", "vllm", "--engine-dtype", "float32", "--engine-timeout-s", "1"]
    with EngineProcess() as engine, contextlib.ExitStack() as stack:
        service = stack.enter_context(
            running_service(tiny_bundle(engine="vllm"), flags=[*flags, "--engine-url", engine.url])
        )
        wait_for(f"{service.url}/readyz", 200)
        struck = threading.Event()

        def strike(request):
            if request == 20:
                engine.process.send_signal(number)
                struck.set()

        def watch():
            assert struck.wait(_PATIENCE_S)
            wait_for(f"{service.url}/readyz", 503)
            seen.append(httpx2.get(f"{service.url}/healthz").status_code)
            engine.bring_back(number)
            wait_for(f"{service.url}/readyz", 200)

        seen = []
        watching = threading.Thread(target=watch)
        watching.start()
        with RewardClient(service.url, max_items_per_request=4, transport=WatchedNetwork(strike)) as client:
            assert client.score(ITEMS).floats == EXPECTED
            watching.join(_PATIENCE_S)
            assert seen == [200]
            assert client.score(ITEMS).floats == EXPECTED
        lost = service.events("not_ready")
        assert {line["kind"] for line in lost} <= {"down", "hangs", "restarted"}
