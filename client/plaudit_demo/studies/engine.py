"""A vLLM server of a policy, as a process of an environment of its own, for a study of rollouts by it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

import httpx2

from plaudit_demo.errors import DemoError
from plaudit_demo.processes import failed, running, wait

_START_TIMEOUT_S = 600.0
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}
_FLAGS = (
    "--served-model-name", "policy", "--host", "127.0.0.1", "--dtype", "bfloat16", "--enforce-eager", "--seed", "0",
    "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--no-enable-chunked-prefill",
    "--max-num-batched-tokens", "16384",
)  # fmt: skip


@contextmanager
def serving_policy(python: Path, policy: Path, log: Path) -> Iterator[str]:
    """Serve a policy in bfloat16, on one thread, for as long as the block runs; yields the URL.

    Raises:
        DemoError: the server does not start.
    """
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
    server = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), "--port", str(port)]
    arguments = ["env", "--unset=PYTHONPATH", *settings, *server, *_FLAGS]
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_TIMEOUT_S
    with running(arguments, log) as process:
        while not _is_healthy(url):
            if (status := wait(process)) is not None:
                raise failed(server, status, log)
            if time.monotonic() > deadline:
                raise DemoError(f"the vLLM server was not ready within {_START_TIMEOUT_S:.0f} s (log: {log})")
        yield url


def _is_healthy(url: str) -> bool:
    try:
        with httpx2.Client(trust_env=False) as http:
            return bool(http.get(f"{url}/health").status_code == 200)
    except httpx2.HTTPError:
        return False
