"""Ahead of vLLM? Its build for the CPU as a pooling server beside `plaudit-serve`, on the same models and token ids.

Both get token ids. vLLM is asked as it answers fastest: raw float32 as bytes, lists of 32 with four in flight, prefix
caching on. It runs in bfloat16 both eager and compiled, beside OpenVINO's bfloat16, and in float32 beside ONNX Runtime.
Ends with an assertion where vLLM in float32 scores something else than we do. `front of vLLM` is `plaudit-serve`
before that very server: what the front costs (`make bench-engine`).

    make bench-vllm        or        .venv/bin/python loadtests/bench_vllm.py --help
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import figures
import numpy as np
from checkpoints import WORK, Kind, Subject, subject
from http_load import closed_loop, post
from servers import Server, end_on_sigterm, missing_runtime, service
from texts import ROOT, read_texts
from throughput import Items, Way, measure, one_request, process_rows, singles, texts_of
from tokenizers import Tokenizer

KINDS: tuple[Kind, ...] = ("encoder", "decoder")
EAGER, COMPILED = "vLLM bfloat16 eager", "vLLM bfloat16 compiled"
FLOAT32 = "vLLM eager float32"  # its scores are compared with ours
FRONT = "front of vLLM eager float32"
SERVERS = ("service onnxruntime", FLOAT32, "service openvino", EAGER, COMPILED)  # the first gives the reference scores
START_TIMEOUT_S = 300.0
# vLLM is fastest so.
LIST, IN_FLIGHT = 32, 4


def main() -> int:
    """Measure and print; returns the exit code."""
    options = parse()
    if not options.vllm_python.exists():
        print(f"{options.vllm_python} is not there; make bench-vllm makes it", file=sys.stderr)
        return 2
    rows = [row for kind in options.kinds for row in measure_kind(kind, options)]
    print(figures.table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures.as_json(rows)) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5, help="of each load (default: %(default)s)")
    parser.add_argument("--kinds", type=_names, default=list(KINDS), help="encoder, decoder")
    parser.add_argument("--servers", type=_names, default=list(SERVERS), help=", ".join((*SERVERS, FRONT)))
    parser.add_argument("--output", type=Path, default=WORK / "bench-vllm.json", metavar="FILE")
    options = parser.parse_args()
    if FRONT in options.servers and FLOAT32 not in options.servers[: options.servers.index(FRONT)]:
        parser.error(f"--servers: name {FLOAT32!r}, the server that is asked, before {FRONT!r}")
    return options


def _names(text: str) -> list[str]:
    return text.split(",")


def measure_kind(kind: Kind, options: argparse.Namespace) -> list[figures.Row]:
    """One request of 64 sequences, 32 concurrent singles, and 6 prompts with 8 completions, on one model."""
    model = subject(kind)
    texts = read_texts(model.bundle)
    tokenizer = Tokenizer.from_file(str(model.bundle / "tokenizer.json"))
    rounds = options.rounds
    # No load has texts of another: vLLM keeps the prefixes that it has seen. The third number is that of the first lot.
    loads = (
        ("one request", None, 0, texts.singles, 64, 8),
        ("32 concurrent singles", 32, rounds, texts.singles, 64, 8),
        ("6 prompts x 8 completions", None, 2 * rounds * 64 // 6 + 1, texts.groups, 6, 1),
    )
    last = 2 * rounds * 64 + rounds * 6 + 12
    assert last <= len(texts.dialogues), f"{len(texts.dialogues)} dialogues, {last} needed; fewer --rounds"
    rows: list[figures.Row] = []
    with running(model, options.servers, options.vllm_python) as servers:
        for part, connections, first, deal, count, num_warm_up in loads:
            ways = {name: _way(name, server.url, connections) for name, server in servers.items()}
            lots = [_ids(tokenizer, deal(lot, count)) for lot in range(first, first + rounds)]
            warm_up = _ids(tokenizer, deal(len(texts.dialogues) // num_warm_up - 1, num_warm_up))
            others = [name for name in servers if name.startswith("vLLM")]
            rows += measure(f"{kind}: {part}", ways, lots, warm_up=warm_up, compared_with=others)
        return rows + process_rows(kind, {name: server for name, server in servers.items() if name not in others})


@contextmanager
def running(model: Subject, names: Sequence[str], vllm_python: Path) -> Iterator[dict[str, Server]]:
    """The servers of these names, which answer."""
    with ExitStack() as stack:
        servers = {}
        for name in names:
            runtime = name.removeprefix("service ")
            if name in SERVERS and not name.startswith("vLLM") and (reason := missing_runtime(runtime)):
                print(f"skipped: {name}: {reason}", file=sys.stderr)
                continue
            if name.startswith("vLLM"):
                opened = vllm(model, name, vllm_python)
            elif name == FRONT:
                opened = front(model, servers[FLOAT32].url)
            else:
                opened = service(model.bundle, runtime=runtime)
            servers[name] = stack.enter_context(opened)
        yield servers


def front(model: Subject, engine_url: str) -> AbstractContextManager[Server]:
    """The service before a vLLM server, until the block ends."""
    bundle = model.bundle.with_name(f"{model.kind}-bundle-vllm")
    if not bundle.exists():
        export = Path(sys.executable).with_name("plaudit-export")
        command = [export, "checkpoint", model.checkpoint, bundle, "--engine", "vllm"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return service(bundle, runtime="vllm", flags=["--engine-url", engine_url, "--engine-dtype", "float32"])


@contextmanager
def vllm(model: Subject, name: str, python: Path) -> Iterator[Server]:
    """Run vLLM as a pooling server until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limit = json.loads((model.bundle / "bundle.json").read_text(encoding="utf-8"))["scoring"]["max_tokens"]
    dtype = "float32" if "float32" in name else "bfloat16"
    command = [python.absolute(), "-m", "vllm.entrypoints.openai.api_server", "--model", model.checkpoint]
    command += ["--runner", "pooling", "--served-model-name", "rm", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--max-model-len", str(limit), *(["--enforce-eager"] if "eager" in name else [])]
    command += ["--enable-prefix-caching"] if model.kind == "decoder" else []
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    cpu = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = WORK / f"{model.kind}-{name.replace(' ', '-')}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**environment, **quiet, **cpu}, stdout=output, stderr=subprocess.STDOUT, cwd=WORK
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_answers(url, process, log)
            yield Server(url, process.pid, time.monotonic() - started)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urlopen(f"{url}/health", timeout=5):  # noqa: S310  our own http:// URL
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vLLM did not start within {START_TIMEOUT_S:.0f} s, or ended; {log} says why")


def _ids(tokenizer: Tokenizer, items: Items) -> Items:
    """Every sequence as token ids."""
    return [{"token_ids": encoded.ids} for encoded in tokenizer.encode_batch_fast(texts_of(items))]


def _way(name: str, url: str, connections: int | None) -> Way:
    if not name.startswith("vLLM"):  # also of the front, which makes lists by itself
        return one_request(url) if connections is None else singles(url, connections)
    return partial(_ask_vllm, url, *((LIST, IN_FLIGHT) if connections is None else (1, connections)))


def _ask_vllm(url: str, num_in_list: int, num_in_flight: int, items: Items) -> list[float]:
    """Raw scores of all items, in lists of so many."""
    ids = [item["token_ids"] for item in items]
    lists = [ids[at : at + num_in_list] for at in range(0, len(ids), num_in_list)]
    fields: dict[str, Any] = {"model": "rm", "task": "classify", "use_activation": False}
    fields |= {"encoding_format": "bytes_only", "embed_dtype": "float32", "endianness": "little"}
    fields |= {"cache_salt": "asked without the front"}  # it continues no prefix that it computed for the front
    requests = [post(url, {**fields, "input": each}, path="/pooling") for each in lists]
    answers = asyncio.run(closed_loop(url, requests, connections=num_in_flight))
    for answer, each in zip(answers, lists, strict=True):
        assert answer.status == 200, f"{url}: HTTP {answer.status} {answer.body[:300]!r}"
        assert len(answer.body) == 4 * len(each), f"{url}: {len(answer.body)} bytes for {len(each)} sequences"
    return [float(score) for answer in answers for score in np.frombuffer(answer.body, dtype="<f4")]


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
