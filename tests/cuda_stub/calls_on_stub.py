"""Runs a bundle's engine on the CUDA stub, marks each step in the stub's log, and prints what the engine says as JSON.

Runs in the environment with onnxruntime-gpu, with the stub in LD_LIBRARY_PATH: calls_on_stub.py BUNDLE DEVICE
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from plaudit_service.serving import parity
from plaudit_service.serving.scorer import Scorer
from plaudit_service.text.tokenization import TokenizedText

ROWS, TOKENS = 4, 511
# Odd, as are the total lengths behind them.
PREFIX, LONGER_PREFIX = 301, 403


def mark(text):
    with Path(os.environ["FAKECUDA_LOG"]).open("a") as log:
        log.write(f"MARK {text}\n")


def text_of(ids):
    return TokenizedText(ids, None, len(ids), truncated=False)


def main(bundle, device):
    mark("load")
    scorer = Scorer(bundle, device=device)
    engine = scorer.model.engine
    session = engine._runtime._session  # where the runtime put the nodes is asked of it
    ids = np.random.default_rng(0).integers(8, 250, (ROWS, TOKENS))
    ids[:, :LONGER_PREFIX] = ids[0, :LONGER_PREFIX]  # what the rows have in common

    def run(length, prefix=None):
        scores = engine.run([text_of(row[:length]) for row in ids], prefix)
        assert scores.shape == (ROWS, 1), scores.shape

    mark("call")
    run(TOKENS)
    mark("again")
    run(TOKENS)
    mark("shorter")
    run(TOKENS - 2)
    if scorer.bundle.scoring.kind == "causal":
        mark("prefix")
        prefix = engine.compute_prefix(ids[0, :PREFIX])
        mark("behind prefix")
        run(TOKENS, prefix)
        mark("longer prefix")
        longer = engine.compute_prefix(ids[0, :LONGER_PREFIX], prefix)
        mark("behind longer prefix")
        run(TOKENS, longer)
    mark("gate")
    report = parity.check(scorer)
    mark("end")
    placed = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, []).extend(part.get_nodes())
    said = {
        "name": engine.name,
        "provider": session.get_providers()[0],
        "on_cpu": [[node.name, node.op_type] for node in placed.get("CPUExecutionProvider", [])],
        "on_cuda": [[node.name, node.op_type] for node in placed["CUDAExecutionProvider"]],
        "batch_tokens": scorer._max_batch_tokens,
        "prefix_cache_bytes": engine.prefix_cache_bytes,
        "gate": {"num_texts": len(report.rows), "engine_failures": report.engine_failures},
    }
    print(json.dumps(said))  # noqa: T201  its output


if __name__ == "__main__":
    main(*sys.argv[1:])
