"""Two bundles of one model, such as before and after a change of the exporter: who is faster, and by how much.

In process and in turn, the same texts for both; also by CPU time, for a machine that is busy.

    .venv/bin/python loadtests/compare_bundles.py OLD NEW --runtime openvino
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from texts import generate_dialogues, sharing_group

from plaudit_service import Scorer

Items = Sequence[Any]


def main() -> None:
    """Print, for each kind of items, old ÷ new of both times: above 1 the new one is faster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    old, new = (Scorer(bundle, runtime=options.runtime) for bundle in (options.old, options.new))
    dialogues = generate_dialogues(40 * (options.rounds + 1))
    kinds: dict[str, Callable[[int], Items]] = {
        "40 texts": lambda lot: [{"text": each.text} for each in dialogues[40 * lot : 40 * (lot + 1)]],
        "8 x 128 tokens on a prefix of 512": sharing_group,
        "1 text of 511 tokens": lambda lot: sharing_group(lot, prefix=255, completion=256, completions=1),
    }
    for kind, deal in kinds.items():
        ratios = [_ratios(old, new, deal(lot)) for lot in range(options.rounds + 1)][1:]  # the first one warms up
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"{options.runtime}, {kind}: old ÷ new {wall:.3f} of wall-clock time, {cpu:.3f} of CPU time")


def _ratios(old: Scorer, new: Scorer, items: Items) -> tuple[float, float]:
    """Old ÷ new, timed as old, new, new, old, so that a machine that slows down slows both."""
    (first, _), (second, scores), (third, _), (last, expected) = (_timed(each, items) for each in (old, new, new, old))
    assert np.allclose(scores, expected, atol=0.5), "the bundles are not of one model"
    wall, cpu = ((a + d) / (b + c) for a, b, c, d in zip(first, second, third, last, strict=True))
    return wall, cpu


def _timed(scorer: Scorer, items: Items) -> tuple[tuple[float, float], list[float]]:
    if scorer.model.prefixes is not None:
        scorer.model.prefixes = type(scorer.model.prefixes)(256 << 20)  # nothing is kept from the last time
    started = time.perf_counter(), time.process_time()
    scores = scorer.score(items).floats
    return (time.perf_counter() - started[0], time.process_time() - started[1]), scores


if __name__ == "__main__":
    main()
