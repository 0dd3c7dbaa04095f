"""A server that speaks the routes of vLLM that the trainer asks, over a real socket; it completes as the stand-in.

Its faults are those that vLLM was seen to have, or that a wrong flag gives it.
"""

import copy
import json
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

from fake_http import FakeHandler, fake_server
from stand_in_engine import complete, tokenize
from transformers import AutoModelForCausalLM

KEY = "engine-key"
# transformers 4 patches torch while it loads a model: two threads at once leave the patches behind.
_LOADING = threading.Lock()
# What a fault may be, and the trainer's remedy is tested by name.
FAULTS = (
    "abort", "another tokenizer", "dead core", "hang", "no logprobs", "reload fails", "short answer", "short context",
    "stale weights", "wrong key", "wrong temperature",
)  # fmt: skip


class FakeVLLM:
    """One engine.

    Args:
        policy: what it was started with; with `tokenizer` it answers /tokenize.
        tokenizer: of the policy.
        fault: what is wrong with it, None or one of FAULTS.
        after: how many completions come before what is wrong with them.
        max_model_len: its context.

    Attributes:
        url: its address.
        calls: method, path and body of every request but those for its health.
        published: the directories that it has loaded.
    """

    def __init__(self, policy, tokenizer, *, fault=None, after=0, max_model_len=64):
        self.policy, self.tokenizer = policy, tokenizer
        self.max_model_len = max_model_len
        self._fault, self._healthy_completions = fault, after
        self.calls, self.published = [], []
        self.released = threading.Event()  # at the end; what hangs hangs until then
        self._base = None
        self._lock = threading.Lock()
        self._server = fake_server(_Handler, self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        """Refuse connections from now on, as a killed server does; requests in flight are cut."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def fault(self):
        """What is wrong with it by now."""
        return self._fault if self._healthy_completions <= 0 else None

    def answer(self, method, path, body, key):
        """Status and JSON."""
        if path == "/health":
            return (503 if self.fault == "dead core" else 200), None
        self.calls.append((method, path, body))
        if self.fault == "wrong key" and path.startswith("/v1/") and key != f"Bearer {KEY}":
            return 401, {"error": "Unauthorized"}
        if path == "/v1/models":
            length = 8 if self.fault == "short context" else self.max_model_len
            return 200, {"data": [{"id": "policy", "parent": None, "max_model_len": length}]}
        if path == "/tokenize":
            return 200, self._tokenize(body["prompt"])
        if path == "/v1/completions":
            return self._complete(body)
        return self._control(path, body)

    def _control(self, path, body):
        if path in {"/pause?mode=wait", "/resume"}:
            return 200, {"status": path}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path not in {"/collective_rpc", "/v1/load_lora_adapter"}:
            return 404, {"error": {"message": "Not Found"}}
        if self.fault == "reload fails":
            return 500, {"error": {"message": "Call to collective_rpc method failed:\nother shapes"}}
        directory = Path(body["lora_path"] if "lora_path" in body else body["kwargs"]["weights_path"])
        assert directory.is_absolute()
        self.published.append(directory)
        if self.fault != "stale weights":
            with _LOADING:
                self._load(directory, is_adapter="lora_path" in body)
        return 200, {"results": [None]}

    def _load(self, directory, *, is_adapter):
        if not is_adapter:
            self.policy = AutoModelForCausalLM.from_pretrained(directory).eval()
            return
        from peft import PeftModel

        self._base = self._base or self.policy
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            self.policy = PeftModel.from_pretrained(copy.deepcopy(self._base), directory).eval()

    def _tokenize(self, text):
        answer = tokenize(self.tokenizer, text)
        if self.fault == "another tokenizer":
            answer["token_strs"].reverse()
        return {**answer, "max_model_len": self.max_model_len}

    def _complete(self, body):
        fault = self.fault
        self._healthy_completions -= 1
        if fault in {"hang", "dead core"}:
            self.released.wait()
            return 500, None
        assert (body["top_p"], body["top_k"], body["ignore_eos"], body["n"]) == (1.0, 0, True, 1)
        with self._lock:
            factor = 1.5 if fault == "wrong temperature" else 1.0
            choice = complete(self.policy, self.tokenizer, body, temperature_factor=factor)
        logprobs = choice["logprobs"]["token_logprobs"]
        if fault == "short answer":
            choice |= {"token_ids": choice["token_ids"][:1], "finish_reason": "length"}
            choice["logprobs"] = {"token_logprobs": logprobs[:1]}
        if fault == "abort":
            choice["finish_reason"] = "abort"
        if fault == "no logprobs":
            choice["logprobs"] = None
        return 200, {"choices": [choice]}


class _Handler(FakeHandler):
    def respond(self):
        body = self.body()
        asked = json.loads(body) if body else None
        status, answer = self.fake.answer(self.command, self.path, asked, self.headers.get("Authorization"))
        content = b"" if answer is None else json.dumps(answer).encode()
        if self.fake.released.is_set():
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def fake_engines(policy, tokenizer, *, count=1, **options):
    """Yield some engines that were started with a policy, and end them."""
    engines = [FakeVLLM(copy.deepcopy(policy).eval(), tokenizer, **options) for _ in range(count)]
    try:
        yield engines
    finally:
        for engine in engines:
            engine.close()
