"""The measurement of the client's cost runs, and says what it measured as JSON in its last line."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "loadtests" / "client_cost.py"


def run(*arguments):
    command = [sys.executable, SCRIPT, "--rounds", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cost_of_both_libraries_and_of_the_client_is_measured():
    rows = run("--requests", "128")["rows"]
    assert rows.keys() == {
        "bare httpx2, 64 connections",
        "bare aiohttp, 64 connections",
        "client, 64 concurrent singles",
        "client, one call",
    }
    assert all(value > 0 for row in rows.values() for value in row.values())


def test_a_call_with_a_slow_replica_is_measured_without_and_with_hedging():
    assert run("--requests", "200", "--hedging")["seconds"].keys() == {"both fast", "one slow", "one slow, hedging"}
