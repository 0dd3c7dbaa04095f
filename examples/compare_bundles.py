"""Say how two reward models rank the same texts: a check before an upgrade. In process, without a service.

python examples/compare_bundles.py old-bundle new-bundle texts.jsonl

Each line of the file is an item: a text as a JSON string, {"prompt": ..., "completion": ...}, or {"messages": [...]}.
"""

import json
import statistics
import sys
from itertools import combinations
from pathlib import Path

from plaudit_service import Scorer


def main(old: str, new: str, source: str) -> None:
    """Print the mean and the spread of both, and the share of all pairs of texts that both rank alike."""
    items = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    results = [Scorer(bundle).score(items) for bundle in (old, new)]
    both = [(a.score, b.score) for a, b in zip(*results, strict=True) if a.score is not None and b.score is not None]
    print(f"{len(both)} of {len(items)} texts have a score by both")
    for name, scores in zip(("old", "new"), zip(*both, strict=True), strict=True):
        print(f"{name}: mean {statistics.mean(scores):.3f}, standard deviation {statistics.pstdev(scores):.3f}")
    ordered = list(combinations(both, 2))
    alike = sum((a[0] < b[0]) == (a[1] < b[1]) for a, b in ordered)
    print(f"{alike / len(ordered):.1%} of {len(ordered)} pairs of texts are ranked alike")


if __name__ == "__main__":
    main(*sys.argv[1:])
