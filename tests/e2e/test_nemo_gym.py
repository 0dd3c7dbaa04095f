"""NeMo-Gym's own client, models and statistics against a real service. Runs where `make test-nemo-gym` made its
environment.
"""

import json
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

PYTHON = Path(os.environ.get("PLAUDIT_NEMO_GYM", ".venv-nemo-gym")).absolute() / "bin" / "python"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="nemo-gym is not installed")]

SAID = {"type": "output_text", "text": "good fine", "annotations": []}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [SAID]}
ROW = {
    "responses_create_params": {"input": [{"role": "user", "content": "bad"}]},
    "response": {
        "id": "r",
        "created_at": 1.0,
        "model": "policy",
        "object": "response",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "output": [MESSAGE],
    },
    "verifier_metadata": {"a": [1, None]},
    "_ng_task_index": 0,
}


def test_nemo_gyms_own_client_takes_every_answer(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", "nemo-gym"]) as service:
        address = urlsplit(service.url)
        command = [PYTHON, Path(__file__).with_name("nemo_gym_client.py"), address.hostname, str(address.port)]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([*command, json.dumps(ROW)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert (got["legacy_seed"], got["sessions"]) == ({}, ["session-1", "session-1"])
    assert got["verified"] == {**ROW, "reward": 0.5}
    assert (got["reward_of_model"], got["mode"], got["failed"]) == (0.5, "stateless", 422)
    own = got["own_aggregated"]
    assert got["aggregated"] == pytest.approx({name: own[name] for name in got["aggregated"]})
    assert got["aggregated"]["mean/reward"] == 1.5
