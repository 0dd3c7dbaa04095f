"""What values at every token cost: `along = tokens` beside plain scoring, in interleaved rounds of one request.

The request has 64 texts of 512 tokens that share nothing, of the bench's decoder or of another bundle.

    .venv/bin/python loadtests/along_cost.py --rounds 5
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import httpx2
from checkpoints import subject
from servers import end_on_sigterm, service
from texts import sharing_nothing

PLAIN, ALONG = "plain", "along = tokens"


def main() -> int:
    """Measure and print; returns the exit code."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="of a causal model (default: the bench's decoder)")
    parser.add_argument("--texts", type=int, default=64, help="of a request (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="of each text (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each way, after one that is not counted")
    options = parser.parse_args()
    bundle = options.bundle or subject("decoder").bundle
    seconds = measure(bundle, [options.tokens] * options.texts, options.rounds)
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    print(f"{options.texts} texts of {options.tokens} tokens, {options.rounds} rounds, {platform.machine()}")
    for way, each in seconds.items():
        print(f"{way:<16} {medians[way]:>8.3f} s   {' '.join(f'{second:.3f}' for second in each)}")
    ratios = [along / plain for along, plain in zip(seconds[ALONG], seconds[PLAIN], strict=True)]
    print(f"{'ratio':<16} {medians[ALONG] / medians[PLAIN]:>8.3f}     {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(json.dumps({"benchmark": "along-cost", "seconds": seconds, "ratio": medians[ALONG] / medians[PLAIN]}))
    return 0


def measure(bundle: Path, lengths: list[int], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; every other round the ways change places. Both give the same scores."""
    items = sharing_nothing(0, lengths)
    fields: dict[str, dict[str, str]] = {PLAIN: {}, ALONG: {"along": "tokens"}}
    bodies = {way: json.dumps({"items": items, **more}).encode() for way, more in fields.items()}
    seconds: dict[str, list[float]] = {way: [] for way in bodies}
    scores: dict[str, list[float]] = {}
    with service(bundle) as server, httpx2.Client(timeout=600) as client:
        for number in range(rounds + 1):
            for way in list(bodies)[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                answer = client.post(f"{server.url}/score", content=bodies[way])
                seconds[way].append(time.perf_counter() - start)
                scores[way] = [result["score"] for result in answer.raise_for_status().json()["results"]]
    assert scores[PLAIN] == scores[ALONG]
    return {way: each[1:] for way, each in seconds.items()}


if __name__ == "__main__":
    raise SystemExit(main())
