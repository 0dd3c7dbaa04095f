"""The benchmark: in-process limit, service, and a plain FastAPI + transformers handler, side by side in one run.

In process means `plaudit_service.Scorer`: tokenizer, batches, engine, no HTTP. In each round every way scores the same
texts, in turn; the next round has other texts. Ratios are medians over rounds of ratios inside a round. The load
generator runs on the same cores; what it costs is in the JSON line. Prints one table and one JSON line, and draws one
plot. Ends with an assertion where the float32 ONNX Runtime service gives other bits than in process, where the plain
handler scores something else, or where a score cache answered.

    make bench        or        .venv/bin/python loadtests/bench.py --help
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import figures
from checkpoints import WORK, Kind
from client_cost import measure_client
from latency import measure_idle, measure_latency
from servers import end_on_sigterm
from texts import all_dialogues
from throughput import measure_model, measure_sharing

KINDS: tuple[Kind, ...] = ("encoder", "decoder")
NOT_RUN = "CUDA float32 and fp16, and which attention kernels ran: these are figures of the CPU"

PARTS: dict[str, Callable[["Sizes"], list[figures.Row]]] = {
    "encoder": lambda sizes: measure_model("encoder", sizes.rounds, sizes.texts, sizes.prompts),
    "decoder": lambda sizes: measure_model("decoder", sizes.rounds, sizes.texts, sizes.prompts),
    "sharing": lambda sizes: measure_sharing(sizes.rounds),
    "latency": lambda sizes: [row for kind in KINDS for row in measure_latency(kind, sizes.rounds, sizes.latency_s)],
    "idle": lambda sizes: measure_idle(sizes.idle_requests),
    "client": lambda sizes: measure_client(sizes.client_requests, sizes.rounds),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int = 3
    texts: int = 128
    prompts: int = 32
    latency_s: float = 30.0
    idle_requests: int = 300
    client_requests: int = 4000


QUICK = Sizes(rounds=2, texts=48, prompts=6, latency_s=8.0, idle_requests=100, client_requests=1000)


def main() -> int:
    """Measure and print; returns the exit code."""
    options = parse()
    started = time.monotonic()
    rows: list[figures.Row] = []
    for number, part in enumerate(options.only, 1):
        print(
            f"part {number} of {len(options.only)}: {part}, after {time.monotonic() - started:.0f} s", file=sys.stderr
        )
        rows += PARTS[part](options.sizes)
    seconds = time.monotonic() - started
    title = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {options.sizes.rounds} rounds, medians"
    print(f"\n{title}, {seconds / 60:.0f} min\n{figures.table(rows)}")
    print(f"not run: {NOT_RUN}")
    figures.draw(rows, options.output / "bench.png", title)
    document = {
        "benchmark": "plaudit",
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("plaudit", "onnxruntime", "torch", "transformers")},
        "sizes": vars(options.sizes),
        "seconds": round(seconds),
        "texts": all_dialogues()[1],
        "not_run": NOT_RUN,
        "rows": figures.as_json(rows),
    }
    line = json.dumps(document, ensure_ascii=False)
    (options.output / "bench.json").write_text(line + "\n", encoding="utf-8")
    print(f"plot: {options.output / 'bench.png'}", file=sys.stderr)
    print(line)
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with `sizes` put together."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ",".join(PARTS)
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"parts, separated by commas, of {names}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look; the figures are noisier")
    parser.add_argument("--rounds", type=_positive, help=_default("counted rounds, after a short warm-up", "rounds"))
    parser.add_argument("--texts", type=_positive, help=_default("texts of a round on the encoder", "texts"))
    parser.add_argument("--prompts", type=_positive, help=_default("prompts of a round on the decoder", "prompts"))
    parser.add_argument("--latency-s", type=float, help=_default("seconds of load for each server", "latency_s"))
    parser.add_argument("--idle-requests", type=_positive, help=_default("requests one by one", "idle_requests"))
    parser.add_argument("--client-requests", type=_positive, help=_default("requests of the client", "client_requests"))
    parser.add_argument("--output", type=Path, default=WORK, help="folder of plot and JSON (default: runs/bench)")
    options = parser.parse_args(arguments)
    base = vars(QUICK if options.quick else Sizes())
    given = {name: getattr(options, name) for name in base if getattr(options, name) is not None}
    options.sizes = Sizes(**{**base, **given})
    return options


def _default(what: str, size: str) -> str:
    return f"{what} (default: {vars(Sizes())[size]}; with --quick {vars(QUICK)[size]})"


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    return wanted


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
