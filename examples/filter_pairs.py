"""Keep the preference pairs in which a reward model agrees with the file, by at least a margin.

python examples/filter_pairs.py http://127.0.0.1:8000 pairs.jsonl kept.jsonl 0.5

Each line is {"prompt": "...", "chosen": "...", "rejected": "..."}. A pair with a text that has no score is left out and
counted: a missing score is never taken for a number.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from plaudit_client import RewardClient


def main(url: str, source: str, target: str, margin: str = "0.0") -> None:
    """Write the kept pairs, and say on standard error what became of the others."""
    pairs = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    items = [{"prompt": pair["prompt"], "completions": [pair["chosen"], pair["rejected"]]} for pair in pairs]
    with RewardClient(url) as client:
        scores = client.score(items)
    counts: Counter[str] = Counter()
    with Path(target).open("w", encoding="utf-8") as file:
        for number, pair in enumerate(pairs):
            chosen, rejected = scores[2 * number], scores[2 * number + 1]
            if chosen.score is None or rejected.score is None:
                counts["without a score"] += 1
            elif chosen.score - rejected.score < float(margin):
                counts["below the margin"] += 1
            else:
                counts["kept"] += 1
                file.write(json.dumps(pair) + "\n")
    print(", ".join(f"{count} {what}" for what, count in counts.items()), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
