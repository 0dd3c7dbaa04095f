"""What calls at once gain: services with one and with several calls of the engine, side by side in interleaved rounds.

.venv/bin/python loadtests/engine_calls.py --calls 1,2 --rounds 5 --runtimes onnxruntime,openvino
"""

import argparse
import sys
from contextlib import ExitStack

import figures
from checkpoints import Kind, subject
from servers import end_on_sigterm, missing_runtime, service
from texts import read_texts
from throughput import measure, one_request, process_rows, singles

KINDS: tuple[Kind, ...] = ("encoder", "decoder")


def main() -> int:
    """Measure and print; returns the exit code."""
    options = parse()
    rows: list[figures.Row] = []
    for runtime in options.runtimes:
        if reason := missing_runtime(runtime):
            print(f"skipped: {reason}", file=sys.stderr)
            continue
        for kind in options.kinds:
            rows += measure_calls(kind, runtime, options.calls, options.rounds)
    print(figures.table(rows))
    return 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=_counts, default=[1, 2], help="numbers of calls at once; the first is the base")
    parser.add_argument("--rounds", type=int, default=5, help="of each load (default: %(default)s)")
    parser.add_argument("--runtimes", type=_names, default=["onnxruntime", "openvino"], help="separated by commas")
    parser.add_argument("--kinds", type=_names, default=list(KINDS), help="encoder, decoder")
    return parser.parse_args()


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


def measure_calls(kind: Kind, runtime: str, calls: list[int], rounds: int) -> list[figures.Row]:
    """One request, 64 concurrent singles, and groups of one prompt with eight completions."""
    model = subject(kind)
    texts = read_texts(model.bundle)
    loads = (
        ("one request", None, texts.singles, 64, 8),
        ("64 concurrent singles", 64, texts.singles, 96, 8),
        ("6 prompts x 8 completions", None, texts.groups, 6, 1),
    )
    rows: list[figures.Row] = []
    with ExitStack() as stack:
        servers = {
            f"{number} at once": stack.enter_context(
                service(model.bundle, runtime=runtime, flags=["--engine-calls", str(number)])
            )
            for number in calls
        }
        for part, connections, deal, count, num_warm_up in loads:
            ways = {
                name: one_request(server.url) if connections is None else singles(server.url, connections)
                for name, server in servers.items()
            }
            lots = [deal(lot, count) for lot in range(rounds)]
            warm_up = deal(len(texts.dialogues) // num_warm_up - 1, num_warm_up)
            rows += measure(
                f"{kind}, {runtime}: {part}", ways, lots, warm_up=warm_up, compared_with=[f"{calls[0]} at once"]
            )
        rows += process_rows(f"{kind}, {runtime}", servers)
    return rows


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
