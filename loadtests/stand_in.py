"""The real service with an engine that takes a fixed time per token, so that many replicas fit on one machine.

Run as `plaudit-serve`, with PLAUDIT_STAND_IN_S: the seconds of a token. What is computed stays right, so that the start
is checked as ever; the engine's thread sleeps besides.
"""

import os
import sys
import time
from collections.abc import Sequence

from plaudit_service.cli import main
from plaudit_service.engine.engines import GraphEngine, Heads, Prefix
from plaudit_service.text.tokenization import TokenizedText

TOKEN_S = float(os.environ["PLAUDIT_STAND_IN_S"])
_run = GraphEngine.run


def _run_slowly(engine: GraphEngine, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> Heads:
    end = time.monotonic() + TOKEN_S * sum(len(text.token_ids) for text in batch)
    heads = _run(engine, batch, prefix)
    time.sleep(max(0.0, end - time.monotonic()))
    return heads


if __name__ == "__main__":
    GraphEngine.run = _run_slowly  # type: ignore[method-assign]  # the one thing that differs
    sys.exit(main())
