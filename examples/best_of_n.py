"""Print the best completion of each prompt, by a reward model behind a service.

python examples/best_of_n.py http://127.0.0.1:8000 < prompts.jsonl

Each line of the input is {"prompt": "...", "completions": ["...", "..."]}. Each line of the output is the prompt with
its best completion and the score; where no completion has a score, both are null.
"""

import json
import sys

from plaudit_client import RewardClient, best_of


def main(url: str) -> None:
    """Score standard input, and write the winners to standard output."""
    items = [json.loads(line) for line in sys.stdin]
    with RewardClient(url) as client:
        winners = best_of(items, client.score(items))
    for item, best in zip(items, winners, strict=True):
        row = {"prompt": item["prompt"], "completion": best and best.completion, "score": best and best.score}
        print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
