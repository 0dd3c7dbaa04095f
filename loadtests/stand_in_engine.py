"""A stand-in for vLLM's server: the routes that the trainer asks, over a real socket, and completions by the policy.

    stand_in_engine.py POLICY --port PORT

A completion is a function of its request and of the weights, bit by bit, whatever else is asked meanwhile. A process
that is started again has the weights of its directory again. SIGTERM ends it with exit code 0, requests in flight are
cut.
"""

import argparse
import json
import os
import signal
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from plaudit_ppo.rollout.completion_text import StopStrings
from plaudit_ppo.rollout.sampling import sample_rollouts


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Any]:
    """The answer of /tokenize."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {"tokens": ids, "token_strs": tokenizer.convert_ids_to_tokens(ids), "count": len(ids)}


@torch.no_grad()
def complete(
    policy: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any], *, temperature_factor: float = 1.0
) -> dict[str, Any]:
    """The choice of /v1/completions.

    Args:
        policy: What samples.
        tokenizer: The policy's, for texts that end a completion.
        asked: The request.
        temperature_factor: 1, but for an engine that takes another temperature than it was asked for.
    """
    ids = torch.tensor([asked["prompt"]])
    is_greedy = asked["temperature"] == 0
    rollouts = sample_rollouts(
        policy,
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        max_tokens=asked["max_tokens"],
        temperature=temperature_factor * (1.0 if is_greedy else asked["temperature"] - 1e-7),
        eos_ids=asked["stop_token_ids"],
        pad_id=1,
        generator=torch.Generator().manual_seed(asked["seed"]),
        stop=StopStrings(asked["stop"], tokenizer) if "stop" in asked else None,
        greedy=is_greedy,
    )
    return {
        "prompt_token_ids": asked["prompt"],
        "token_ids": rollouts.completion_ids[0].tolist(),
        "logprobs": {"token_logprobs": rollouts.sampled_logprobs[0].tolist()},
        "finish_reason": "stop" if rollouts.finished[0] else "length",
    }


class StandInEngine:
    """What answers; knows no HTTP.

    Args:
        path: Directory of the policy that it has until it is given other weights.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._policy = AutoModelForCausalLM.from_pretrained(path).eval()
        self._computing = threading.Lock()
        self._is_going = threading.Event()
        self._is_going.set()

    def answer(self, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON."""
        match path:
            case "/health" | "/readyz" | "/reset_prefix_cache":
                return 200, {"success": True}
            case "/v1/models":
                length = self._policy.config.max_position_embeddings
                return 200, {"data": [{"id": "policy", "parent": None, "max_model_len": length}]}
            case "/tokenize":
                return 200, tokenize(self._tokenizer, asked["prompt"])
            case "/pause?mode=wait":
                with self._computing:
                    self._is_going.clear()
                return 200, {}
            case "/resume":
                self._is_going.set()
                return 200, {}
            case "/collective_rpc":
                with self._computing:
                    self._policy = AutoModelForCausalLM.from_pretrained(asked["kwargs"]["weights_path"]).eval()
                return 200, {"results": [None]}
            case "/v1/completions":
                self._is_going.wait()
                with self._computing:
                    return 200, {"choices": [complete(self._policy, self._tokenizer, asked)]}
        return 404, {"error": {"message": "Not Found"}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, engine: StandInEngine, *arguments: Any) -> None:
        self._engine = engine
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, answer = self._engine.answer(self.path, json.loads(body or b"{}"))
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        """Requests are not logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def make_server(engine: StandInEngine, port: int) -> ThreadingHTTPServer:
    """A server on loopback, not yet serving."""
    return _Server(("127.0.0.1", port), partial(_Handler, engine))


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policy", type=Path, help="directory of the policy")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Not by an exception: a thread that computes would meet an interpreter that ends.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    make_server(StandInEngine(options.policy), options.port).serve_forever()


if __name__ == "__main__":
    main()
