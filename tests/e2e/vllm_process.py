"""A real vLLM server on the CPU, as a process of an environment of its own (`make test-vllm`)."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from ppo_runs import free_port

START_S = 300
ROLLOUTS = (
    "--served-model-name", "policy", "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--seed", "0",
    "--max-model-len", "32", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
    "--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384",
)  # fmt: skip
SCORES = ("--runner", "pooling", "--served-model-name", "rm", "--host", "127.0.0.1", "--enforce-eager")
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}


def python_of_vllm():
    """The interpreter that has vLLM; without one, the test is skipped."""
    environment = os.environ.get("PLAUDIT_VLLM")
    if environment is None:
        pytest.skip("needs vLLM in an environment of its own: make test-vllm")
    return Path(environment).resolve() / "bin" / "python"


class VLLMServer:
    """A server that is there when this returns."""

    def __init__(self, model, log, *flags, port=None, purpose=ROLLOUTS):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [python_of_vllm(), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", self.port]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _ENVIRONMENT
        with open(log, "ab") as output:  # noqa: PTH123
            self.process = subprocess.Popen(
                [*map(str, command), *purpose, *map(str, flags)], env=environment, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + START_S
        while not self.is_healthy():
            assert self.process.poll() is None, f"the server ended; see {log}"
            assert time.monotonic() < end, f"the server did not start in time; see {log}"
            time.sleep(0.5)

    def is_healthy(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:  # noqa: S310
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def send(self, number):
        """Send a signal to the server and all processes of it."""
        os.killpg(self.process.pid, number)

    def kill(self):
        """Ends the server and all processes of it."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def kill_core(self):
        """Ends the process that computes, and leaves the one that answers HTTP."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (core,) = [child for child in children if "EngineCore" in Path(f"/proc/{child}/cmdline").read_text()]
        os.kill(int(core), signal.SIGKILL)


@contextmanager
def vllm_server(*arguments, **options):
    server = VLLMServer(*arguments, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
