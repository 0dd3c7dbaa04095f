import json
import os
import signal
from pathlib import Path

import pytest

from plaudit_demo.errors import DemoError
from plaudit_demo.service import Latency, fetch_metrics, listening_url, read_latency, serving

METRICS = """
plaudit_request_seconds_bucket{le="0.01",route="/info"} 9.0
plaudit_request_seconds_bucket{le="0.01",route="/score"} 1.0
plaudit_request_seconds_bucket{le="0.1",route="/score"} 4.0
plaudit_request_seconds_bucket{le="+Inf",route="/score"} 5.0
plaudit_request_seconds_count{route="/score"} 5.0
plaudit_request_seconds_sum{route="/score"} 2.5
"""


def serve(bundle, log):
    return serving(bundle, log, num_threads=1, timeout_s=5.0, on_poll=lambda: None)


def test_the_latency_is_read_from_cumulative_buckets():
    latency = read_latency(METRICS)
    assert latency == Latency(bounds_s=(0.01, 0.1, float("inf")), counts=(1, 3, 1), mean_s=0.5)
    assert latency.share_within(0.1) == 0.8


def test_metrics_without_a_request_are_an_error():
    with pytest.raises(DemoError, match="plaudit_request_seconds"):
        read_latency('plaudit_request_seconds_bucket{le="+Inf",route="/info"} 5.0')


def test_the_address_is_found_among_other_and_half_written_lines():
    line = json.dumps({"event": "listening", "url": "http://127.0.0.1:5"})
    assert listening_url(f"a warning\n7\n{line}\n") == "http://127.0.0.1:5"
    assert listening_url(f"a warning\n{line[:-4]}") is None


def test_a_service_is_ready_scores_and_is_gone_after_the_block(tiny_bundle, tmp_path):
    with serve(tiny_bundle(), tmp_path / "log") as (url, client):
        pid = service_pid(tmp_path / "log")
        assert client.score(["a text"])[0].ok
        assert sum(read_latency(fetch_metrics(url)).counts) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_two_services_at_once_get_different_ports(tiny_bundle, tmp_path):
    bundle = tiny_bundle()
    with serve(bundle, tmp_path / "one") as (one, _), serve(bundle, tmp_path / "other") as (other, _):
        assert one != other


def test_a_service_that_does_not_start_is_quoted(tmp_path):
    service = serve(tmp_path / "no bundle", tmp_path / "log")
    with pytest.raises(DemoError, match=r"plaudit-serve ended with status 2: plaudit-serve: error: .*whole log: "):
        service.__enter__()


def test_a_service_that_dies_during_the_run_is_named_as_the_cause(tiny_bundle, tmp_path):
    def run():
        with serve(tiny_bundle(), tmp_path / "log") as (_, client):
            os.kill(service_pid(tmp_path / "log"), signal.SIGKILL)
            client.score(["a text"], timeout_s=1.0)

    with pytest.raises(DemoError, match="plaudit-serve ended with signal SIGKILL"):
        run()


def test_a_failure_while_the_service_lives_names_its_log(tiny_bundle, tmp_path):
    def run():
        with serve(tiny_bundle(), tmp_path / "log") as (_, client):
            client.score(["a text"], model="another")

    with pytest.raises(DemoError, match=r'status 404: .*"another".*\(log of plaudit-serve: '):
        run()


def service_pid(log):
    """The process that has this log open as its output."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "fd" / "2").readlink() == log:
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("no process writes this log")
