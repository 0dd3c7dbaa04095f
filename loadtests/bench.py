"""What the service costs over the bare model: in-process limit against the service, side by side in one run.

In process means `plaudit_service.Scorer`: tokenizer, batches, engine, no HTTP. The model is the real 22M-parameter
MiniLM encoder with a random head. Prints one table and, as the last line, one JSON object.

    make bench        or        .venv/bin/python loadtests/bench.py --help
"""

import argparse
import asyncio
import gzip
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from plaudit_client import AsyncRewardClient, RewardClient
from plaudit_service import Scorer
from plaudit_service.testing import running_service

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=256, help="texts of one round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: the MiniLM encoder, exported for this)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench", help="where that bundle is kept")
    options = parser.parse_args()
    bundle = options.bundle or minilm_bundle(options.work)
    texts, origin = read_texts(options.texts)
    scorer = Scorer(bundle)
    keep = [text for text, score in zip(texts, scorer.score(texts), strict=True) if score.ok]
    with running_service(bundle) as service:
        url = service.url
        ways: dict[str, Callable[[], list[float]]] = {
            "in process": lambda: scorer.score(keep).floats,
            "service, one request": lambda: one_request(url, keep),
            "service, 64 concurrent singles": lambda: asyncio.run(singles(url, keep, connections=64)),
        }
        rates, client_cpu = measure(ways, len(keep), options.rounds)
    report(
        rates,
        client_cpu,
        texts=len(keep),
        left_out=len(texts) - len(keep),
        origin=origin,
        engine=scorer.model.engine.name,
    )
    return 0


def measure(
    ways: dict[str, Callable[[], list[float]]], num_texts: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Sequences per second of each way in each round, in turn; and CPU seconds of this process per sequence.

    Also holds every way's scores against the first way's, to the bit.
    """
    rates: dict[str, list[float]] = {way: [] for way in ways}
    cpu_s: dict[str, list[float]] = {way: [] for way in ways}
    expected: list[float] | None = None
    progress = tqdm(total=(rounds + 1) * len(ways), desc="measuring", unit="run", file=sys.stderr)
    for number in range(rounds + 1):
        for way, run in ways.items():
            cpu = time.process_time()
            started = time.perf_counter()
            scores = run()
            seconds = time.perf_counter() - started
            expected = expected or scores
            assert scores == expected, f"{way}: other scores than in process"
            if number > 0:
                rates[way].append(num_texts / seconds)
                cpu_s[way].append((time.process_time() - cpu) / num_texts)
            progress.update()
    progress.close()
    return rates, {way: statistics.median(values) for way, values in cpu_s.items()}


def one_request(url: str, texts: list[str]) -> list[float]:
    """All texts in one request."""
    with RewardClient(url, timeout_s=600) as client:
        return client.score(texts).floats


async def singles(url: str, texts: list[str], *, connections: int) -> list[float]:
    """Each text in a request of its own, a bounded number of them at a time."""
    async with AsyncRewardClient(url, timeout_s=600, max_items_per_request=1, max_concurrency=connections) as client:
        return (await client.score(texts)).floats


def report(
    rates: dict[str, list[float]],
    client_cpu: dict[str, float],
    *,
    texts: int,
    left_out: int,
    origin: str,
    engine: str,
) -> None:
    """Print the table and the JSON line."""
    limit = rates["in process"]
    rows = {
        way: {
            "sequences_per_s": round(statistics.median(values), 2),
            "ratio_to_in_process": round(statistics.median(a / b for a, b in zip(values, limit, strict=True)), 4),
            "bench_cpu_ms_per_sequence": round(1000 * client_cpu[way], 3),
        }
        for way, values in rates.items()
    }
    print(f"\n{texts} texts ({origin}; {left_out} left out as too long), {len(limit)} rounds, medians, {engine}")
    print(f"{'way':<34}{'sequences/s':>14}{'÷ in process':>14}{'CPU of this process, ms/sequence':>36}")
    for way, row in rows.items():
        print(
            f"{way:<34}{row['sequences_per_s']:>14}{row['ratio_to_in_process']:>14}{row['bench_cpu_ms_per_sequence']:>36}"
        )
    print(
        json.dumps(
            {
                "benchmark": "service-cost",
                "engine": engine,
                "texts": texts,
                "texts_from": origin,
                "rounds": len(limit),
                "cores": len(os.sched_getaffinity(0)),
                "machine": platform.machine(),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "rows": rows,
            }
        )
    )


def minilm_bundle(work: Path) -> Path:
    """The MiniLM encoder with a random head, exported once."""
    bundle = work / "minilm-bundle"
    if not bundle.exists():
        checkpoint = write_minilm_checkpoint(work / "minilm-checkpoint")
        export = Path(sys.executable).with_name("plaudit-export")
        subprocess.run([export, "checkpoint", checkpoint, bundle], check=True)
    return bundle


def write_minilm_checkpoint(path: Path) -> Path:
    """The encoder with a random scalar head, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    from plaudit_export.testing import minilm_encoder

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(minilm_encoder(), num_labels=1)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(minilm_encoder()).save_pretrained(path)
    return path


def read_texts(count: int) -> tuple[list[str], str]:
    """Real dialogues where there are any, else words with their length distribution; and which of both."""
    data = Path(os.environ.get("PLAUDIT_DATA", ROOT.parent / "shared" / "data")) / "hh-harmless" / "pairs.jsonl.gz"
    if data.exists():
        with gzip.open(data, "rt", encoding="utf-8") as file:
            return [json.loads(line)["chosen"] for _, line in zip(range(count), file, strict=False)], "hh-harmless"
    source = random.Random(0)
    lengths = [round(source.lognormvariate(math.log(120), 0.7)) for _ in range(count)]
    return [" ".join(source.choices(["the", "house", "is", "not", "far"], k=max(3, n))) for n in lengths], "generated"


if __name__ == "__main__":
    sys.exit(main())
