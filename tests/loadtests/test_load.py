"""locust in processes of its own: importing it patches sockets and threads of the process that does."""

import subprocess
import sys
from pathlib import Path

import pytest

LOADTESTS = Path(__file__).parents[2] / "loadtests"
SCENARIOS = ["SteadySingles", "Groups", "MixedLengths", "PpoBurst", "Overload", "Dialects"]
DIALECTS = ["--dialects", "tei,sglang,nemo-gym"]


def run(url, scenario, *flags):
    command = [sys.executable, "-m", "locust", "-f", str(LOADTESTS / "locustfile.py"), scenario, "--host", url]
    command += ["--headless", "--only-summary", "--users", "2", "--run-time", "1s", "--stop-timeout", "10", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_slo_that_is_not_kept_ends_with_1_and_says_which(serve, tiny_bundle):
    with serve(tiny_bundle(max_tokens=4096)) as service:
        done = run(service.url, "Groups", "--slo-p99-s", "0.000001")
    assert done.returncode == 1
    assert "SLO not kept: group of 8: p99 is" in done.stderr


@pytest.mark.slow
def test_an_answer_without_a_score_breaks_the_slo(serve, tiny_bundle):
    with serve(tiny_bundle(max_tokens=4)) as service:
        done = run(service.url, "Groups")
    assert done.returncode == 1
    assert "100.00% of the requests failed, limit 0.00%" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_keeps_its_slo_on_a_service_that_is_fast(serve, tiny_bundle, scenario):
    with serve(tiny_bundle(max_tokens=4096), flags=DIALECTS) as service:
        done = run(service.url, scenario, "--slo-p99-s", "60")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_make_load_names_the_scenario_that_failed(tiny_bundle):
    bundle = tiny_bundle(max_tokens=200)  # the long texts of MixedLengths do not fit
    command = [sys.executable, LOADTESTS / "load.py", "--bundle", bundle, "--seconds", "3"]
    done = subprocess.run(
        [*command, "--only", "SteadySingles", "--only", "MixedLengths"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stdout.endswith("failed: MixedLengths\n")
