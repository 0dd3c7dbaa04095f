"""Scores a batch that does not fit into the memory that this process may have; prints what became of it.

The graph makes 16 KiB of every token, on the real ONNX Runtime: its own allocation fails, nothing is faked.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plaudit_service.bundles.bundle import load_bundle, sha256_of
from plaudit_service.engine.engines import open_engine
from plaudit_service.engine.model import Model
from plaudit_service.testing import write_tiny_bundle
from plaudit_service.text.tokenization import TokenizedText

NUM_TOKENS = 1024
FREE_BYTES = 200 << 20


def main(folder: Path) -> None:
    """Compute 64 sequences in one batch, then as many as are said to fit."""
    bundle = load_bundle(write_wide_bundle(folder / "bundle"))
    model = Model(bundle, open_engine(bundle, num_threads=1))
    texts = [TokenizedText(np.full(NUM_TOKENS, number), None, NUM_TOKENS, truncated=False) for number in range(4, 68)]
    model.compute(texts[:1])
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + FREE_BYTES,) * 2)
    outcomes = model.compute(texts)
    failures = model.num_engine_failures
    model.compute(texts[: int(model.max_batch_tokens) // NUM_TOKENS])
    print(json.dumps({"outcomes": outcomes, "failures": [failures, model.num_engine_failures - failures]}))


def write_wide_bundle(path: Path) -> Path:
    """A bundle whose score is the largest token id, by way of 4,096 numbers for each token."""
    write_tiny_bundle(path, max_tokens=NUM_TOKENS)
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids", "attention_mask")
    ]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["values", "last"], ["columns"]),
        helper.make_node("MatMul", ["columns", "ones"], ["wide"]),
        helper.make_node("ReduceMax", ["wide", "all"], ["largest"], keepdims=0),
        helper.make_node("Unsqueeze", ["largest", "head"], ["scores"]),
    ]
    constants = {"last": [2], "all": [1, 2], "head": [1]}
    initializers = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.ones((1, 4096), dtype=np.float32), "ones"))
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 1])
    graph = helper.make_graph(nodes, "wide", ids, [scores], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path / "model.onnx")
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["scoring"]["sha256"]["model.onnx"] = sha256_of(path / "model.onnx")
    (path / "bundle.json").write_text(json.dumps(manifest))
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
