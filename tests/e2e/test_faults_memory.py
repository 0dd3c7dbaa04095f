import json
import subprocess
import sys
from pathlib import Path


def test_a_batch_that_does_not_fit_into_memory_is_split_and_later_ones_are_smaller(tmp_path):
    command = [sys.executable, Path(__file__).with_name("scarce_memory.py"), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["outcomes"] == [[float(number)] for number in range(4, 68)]
    at_first, later = told["failures"]
    assert at_first > 0
    assert later == 0
