"""schemathesis against a running service, all dialects on: valid and invalid requests made from the OpenAPI document.

Every answer has to be one that the document describes: status, content type, headers, body. So there is no 5xx; invalid
requests are refused, other methods are 405, and where there are keys nothing but the probes is answered without one.
"""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

DIALECTS = "openrlhf,llamafactory,vllm,slime,tei,sglang,nemo-gym"
KEY = {"Authorization": "Bearer a-key"}

CONFIG = """
[generation]
allow-extra-parameters = false  # a header that the document does not name is no error

[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", "504"]  # 504: the deadline that the request names has passed

[[operations]]
include-operation-id = [
  "openrlhf", "llamafactory", "vllm_or_sglang_classify", "vllm_pooling", "slime", "tei_predict", "tei_rerank",
  "tei_classify", "sglang_embeddings", "nemo_gym_verify", "nemo_gym_seed_session", "nemo_gym_close_session",
  "nemo_gym_aggregate_metrics", "nemo_gym_reverify_mode", "head_nemo_gym_reverify_mode",
]
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]  # the same, as a dialect says it
"""

# The model scores no pairs, and as an encoder it has no values along a text.
OUTCOMES = {"/rerank": "not-reranker", "/pooling": "invalid-request"}

# Some valid requests are refused for what no schema says: ids outside of the vocabulary, lists of unequal length.
EXCLUDED = "positive_data_acceptance"


@pytest.mark.parametrize("num_examples", [10, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("keys", ["", "a-key"], ids=["no keys", "keys"])
def test_every_answer_is_one_that_the_document_describes(serve, tiny_bundle, tmp_path, keys, num_examples):
    with serve(tiny_bundle(), flags=["--dialects", DIALECTS], env={"PLAUDIT_API_KEYS": keys}) as service:
        run = fuzz(service.url, tmp_path, num_examples, KEY if keys else {})
        paths = httpx2.get(f"{service.url}/openapi.json", headers=KEY).json()["paths"]
        requests = service.events("request")
        failed = service.events("request_failed")
    assert run.returncode == 0, run.stdout + run.stderr
    assert failed == []
    for path in paths:
        assert OUTCOMES.get(path, "ok") in {request["outcome"] for request in requests if request["route"] == path}, (
            path
        )
    assert {400, 404, 405, 422} <= {request["status"] for request in requests}
    assert keys == "" or 401 in {request["status"] for request in requests}


def fuzz(url: str, folder: Path, num_examples: int, headers: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run schemathesis, the same for a seed."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json"]
    command += ["--seed", "1", "--max-examples", str(num_examples), "--exclude-checks", EXCLUDED]
    command += [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
