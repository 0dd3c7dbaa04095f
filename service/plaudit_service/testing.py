"""For tests of the service and of what talks to it: a bundle whose scores can be done by hand, and a running service.

Needs the `onnx` package. The bundle's model adds up one number per word: "good fine bad" scores 1 + 0.5 - 1.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from plaudit_service.bundles.bundle import (
    CHAT_TEMPLATE,
    GOLDEN,
    GRAPH,
    MANIFEST,
    TOKENIZER,
    Head,
    Manifest,
    Normalization,
    Scoring,
    Source,
    SpecialToken,
    sha256_of,
)

# The value of each word; the id of a word is its place. "crash" has an id that the graph has no value for.
VALUES = {
    "[PAD]": 0.0,
    "[BOS]": 0.0,
    "[EOS]": 0.0,
    "[UNK]": 0.0,
    "good": 1.0,
    "fine": 0.5,
    "bad": -1.0,
    "awful": -2.25,
    "infinite": float("inf"),
    "crash": None,
}
WORD_IDS = {word: number for number, word in enumerate(VALUES)}

CHAT = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"

GOLDEN_TEXTS = ("good", "good bad fine", "awful " * 20 + "good", "unknown words are worth nothing", "fine fine")


def write_tiny_bundle(
    path: Path,
    *,
    name: str = "tiny",
    max_tokens: int = 64,
    heads: Mapping[str, float] | None = None,
    normalization: Normalization | None = None,
    append_eos: bool = False,
    pair: bool = False,
    chat_template: str | None = CHAT,
    golden_offset: float = 0.0,
    more_words: Sequence[str] = (),
    engine: Literal["onnx", "vllm"] = "onnx",
) -> Path:
    """Write an encoder bundle that adds up the values of words.

    Args:
        path: The directory to make.
        name: The model's name.
        max_tokens: Limit of a sequence, BOS included.
        heads: Name and weight of each head; head number k gives (k + 1) times the sum.
        normalization: Mean and std of the manifest.
        append_eos: Whether texts end with EOS.
        pair: Whether prompt and completion are a pair.
        chat_template: A Jinja template, or None.
        golden_offset: Added to the reference scores, to make a bundle that is wrong.
        more_words: Further words of its tokenizer, which the graph has no value for; it is another tokenizer then.
        engine: `vllm`: without a graph, for a server that adds up the values of the words by itself.

    Returns:
        The path.
    """
    path.mkdir(parents=True)
    head_list = tuple(Head(name=head, weight=weight) for head, weight in (heads or {"score": 1.0}).items())
    if engine == "onnx":
        onnx.save(_graph(len(head_list)), path / GRAPH)
    _tokenizer(more_words).save(str(path / TOKENIZER))
    files = [GRAPH, TOKENIZER] if engine == "onnx" else [TOKENIZER]
    if chat_template is not None:
        (path / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
        files.append(CHAT_TEMPLATE)
    golden = [_golden(text, head_list, pair=pair, append_eos=append_eos) for text in GOLDEN_TEXTS]
    for record in golden:
        record["score"] += golden_offset
    (path / GOLDEN).write_text("".join(json.dumps(record) + "\n" for record in golden), encoding="utf-8")
    manifest = Manifest(
        name=name,
        scoring=Scoring(
            kind="encoder",
            max_tokens=max_tokens,
            vocab_size=len(VALUES),
            pad_token_id=WORD_IDS["[PAD]"],
            bos=SpecialToken(text="[BOS]", id=WORD_IDS["[BOS]"]),
            eos=SpecialToken(text="[EOS]", id=WORD_IDS["[EOS]"]),
            append_eos=append_eos,
            pair=pair,
            heads=head_list,
            normalization=normalization,
            engine=engine,
            weights={} if engine == "onnx" else {"config.json": "0" * 64, "model.safetensors": "1" * 64},
            sha256={file: sha256_of(path / file) for file in files},
        ),
        tolerance=1e-5 if engine == "onnx" else 1e-4,
        opset=23 if engine == "onnx" else None,
        source=Source(id="made by hand", architecture="SumOfWords", attention="none"),
        versions={"onnx": onnx.__version__},
        sha256={GOLDEN: sha256_of(path / GOLDEN)},
    )
    (path / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return path


@dataclass(frozen=True)
class RunningService:
    """A `plaudit-serve` process; `log` is the file that its log lines go to."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event, so far."""
        return [line for line in _log_lines(self.log) if line["event"] == name]

    def stop(self, timeout_s: float = 30.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextmanager
def running_service(
    *bundles: Path,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout_s: float = 120.0,
) -> Iterator[RunningService]:
    """Run `plaudit-serve` on a free port, from when it has checked its golden texts; stopped at the end.

    Args:
        bundles: What it serves.
        flags: More of its flags.
        env: Variables added to this process's.
        log: File of its log lines; None: a temporary one.
        timeout_s: How long it may take to start.

    Raises:
        RuntimeError: it ended or did not start in time; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "plaudit-serve.log"
        command = [str(Path(sys.executable).with_name("plaudit-serve")), *map(str, bundles), "--port", "0", *flags]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stderr=file, env={**os.environ, **(env or {})})
        try:
            yield RunningService(process, _wait_until_checked(process, log, timeout_s), log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_checked(process: "subprocess.Popen[bytes]", log: Path, timeout_s: float) -> str:
    """The URL of a service that is ready, or that will never be."""
    end = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < end:
        events = {line["event"]: line for line in _log_lines(log)}
        if "listening" in events and events.keys() & {"ready", "not_ready"}:
            return str(events["listening"]["url"])
        time.sleep(0.02)
    raise RuntimeError(f"plaudit-serve did not start: {log.read_text(encoding='utf-8')[-2000:]}")


def _log_lines(log: Path) -> list[dict[str, Any]]:
    """Whole lines that are JSON; a refusal to start is one line of text."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]


def score_by_hand(text: str) -> float:
    """The raw score of a text in the tiny bundle's first head."""
    return float(sum(VALUES.get(word) or 0.0 for word in text.split()))


def _graph(num_heads: int) -> onnx.ModelProto:
    values = np.array([value for value in VALUES.values() if value is not None], dtype=np.float32)
    table = values[:, None] * np.arange(1, num_heads + 1, dtype=np.float32)
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids", "attention_mask")
    ]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", num_heads])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["values"]),
        helper.make_node("Cast", ["attention_mask"], ["keep"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["keep", "last"], ["keep_heads"]),
        helper.make_node("Where", ["keep_heads", "values", "zero"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["scores"], keepdims=0),
    ]
    constants = {
        "table": table,
        "last": np.array([2]),
        "tokens": np.array([1]),
        "zero": np.array(0.0, dtype=np.float32),
    }
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sum_of_words", ids, [scores], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _tokenizer(more_words: Sequence[str]) -> Tokenizer:
    ids = {word: number for number, word in enumerate([*WORD_IDS, *more_words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", "[BOS]", "[EOS]"])
    bos = WORD_IDS["[BOS]"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", pair="[BOS] $A $B:1", special_tokens=[("[BOS]", bos)]
    )
    return tokenizer


def _golden(text: str, heads: Sequence[Head], *, pair: bool, append_eos: bool) -> dict[str, Any]:
    words = text.split()
    ids = [WORD_IDS["[BOS]"], *(WORD_IDS.get(word, WORD_IDS["[UNK]"]) for word in words)]
    total = score_by_hand(text)
    values = [total * (number + 1) for number in range(len(heads))]
    return {
        "item": {"prompt": words[0], "completion": " " + " ".join(words[1:])} if pair else {"text": text},
        "token_ids": [*ids, WORD_IDS["[EOS]"]] if append_eos else ids,
        "heads": values,
        "score": sum(head.weight * value for head, value in zip(heads, values, strict=True)),
    }
