"""Sequences per second: in process, service, plain handler, on the same texts, round by round in turn."""

import asyncio
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from checkpoints import Kind, Subject, subject
from figures import Row, rate_rows
from http_load import Answer, closed_loop, post
from servers import Server, has_setting, missing_runtime, plain_handler, service
from texts import read_texts, sharing_group, sharing_nothing
from tqdm import tqdm

from plaudit_service import Scorer

IN_PROCESS = "in process onnxruntime"
IN_PROCESS_OPENVINO = "in process openvino"
EXACT = "service onnxruntime"
OPENVINO = "service openvino"
PLAIN = "plain handler bfloat16"
COMPARED_WITH = (IN_PROCESS, IN_PROCESS_OPENVINO, PLAIN)

# A plain handler in float32 computes the same: this is far above what two kernels differ by, far below a score's std.
SAME_SCORE = 1e-3
WARM_UP = 8

Items = Sequence[Any]
Way = Callable[[Items], list[float]]


def measure_model(kind: Kind, rounds: int, num_texts: int, num_prompts: int) -> list[Row]:
    """One big request, 64 concurrent requests of one text each, and groups of one prompt with eight completions."""
    model = subject(kind)
    texts = read_texts(model.bundle)
    singles_of, groups_of = texts.singles, texts.groups
    loads = (
        (f"{kind}: one request", None, singles_of, num_texts, WARM_UP),
        (f"{kind}: 64 concurrent singles", 64, singles_of, num_texts, WARM_UP),
        (f"{kind}: {num_prompts} prompts x 8 completions", None, groups_of, num_prompts, 1),
    )
    rows: list[Row] = []
    with servers_of(model) as servers:
        for part, connections, deal, count, num_warm_up in loads:
            ways = _ways(model, servers, connections)
            lots = [deal(lot, count) for lot in range(rounds)]
            last = len(texts.dialogues) // num_warm_up - 1  # a lot that no round has
            rows += measure(part, ways, lots, warm_up=deal(last, num_warm_up))
            if connections is not None:
                cost = next(row.more["bench_cpu_ms_per_sequence"] for row in reversed(rows) if row.server == EXACT)
                rows.append(Row(f"{kind}: load generator, CPU of a single", "this process", cost, "ms"))
        return rows + process_rows(kind, servers)


def measure_sharing(rounds: int) -> list[Row]:
    """What prefix sharing gains where there is much to share, and costs where there is nothing."""
    if not has_setting("share_prefixes"):
        _skip("prefix sharing", "the installed plaudit-serve has no --no-share-prefixes")
        return []
    model = subject("decoder")
    lengths = [len(text) // 4 for text in read_texts(model.bundle).singles(0, 32)]
    cases = {
        "decoder: 8 x 128 tokens on a prefix of 512": [sharing_group(seed) for seed in range(rounds + 1)],
        "decoder: texts that share nothing": [sharing_nothing(seed, lengths) for seed in range(rounds + 1)],
    }
    with service(model.bundle) as sharing, service(model.bundle, flags=["--no-share-prefixes"]) as alone:
        ways = {"sharing": one_request(sharing.url), "no sharing": one_request(alone.url)}
        rows = []
        for part, lots in cases.items():
            rows += measure(part, ways, lots[1:], warm_up=lots[0], compared_with=["no sharing"])
        return rows


@contextmanager
def servers_of(model: Subject) -> Iterator[dict[str, Server]]:
    """All servers that a model is measured on, running; a runtime that is not there is left out, and said so."""
    with ExitStack() as stack:
        servers = {EXACT: stack.enter_context(service(model.bundle))}
        if reason := missing_runtime("openvino"):
            _skip("service openvino", reason)
        else:
            servers[OPENVINO] = stack.enter_context(service(model.bundle, runtime="openvino"))
        servers[PLAIN] = stack.enter_context(plain_handler(model, "bfloat16"))
        servers["plain handler float32"] = stack.enter_context(plain_handler(model, "float32"))
        yield servers


def process_rows(kind: str, servers: Mapping[str, Server]) -> list[Row]:
    """Memory and start of each server."""
    memory = [Row(f"{kind}: resident memory", name, each.resident_bytes / 1e6, "MB") for name, each in servers.items()]
    return memory + [Row(f"{kind}: start", name, each.start_s, "s") for name, each in servers.items()]


@dataclass
class _Measured:
    """What one way showed, round by round."""

    rates: list[float]
    cpu_ms: list[float]
    largest_difference: float = 0.0


def measure(
    part: str,
    ways: Mapping[str, Way],
    lots: Sequence[Items],
    *,
    warm_up: Items,
    compared_with: Sequence[str] = COMPARED_WITH,
) -> list[Row]:
    """Rates of all ways, each on every lot of items.

    The first way's scores are the reference. The order of the ways turns from round to round.
    """
    measured = {way: _Measured([], []) for way in ways}
    with tqdm(total=(len(lots) + 1) * len(ways), desc=part, unit="run", file=sys.stderr) as progress:
        for run in ways.values():
            run(warm_up)
            progress.update()
        for number, items in enumerate(lots):
            names = list(ways)
            scores = {}
            for way in names[number % len(names) :] + names[: number % len(names)]:
                cpu, started = time.process_time(), time.perf_counter()
                scores[way] = ways[way](items)
                seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
                measured[way].rates.append(len(scores[way]) / seconds)
                measured[way].cpu_ms.append(1000 * cpu / len(scores[way]))
                progress.update()
            for way in names:
                difference = largest_difference(scores[way], scores[names[0]])
                check_difference(f"{part}, {way}", way, difference)
                measured[way].largest_difference = max(measured[way].largest_difference, difference)
    more = {
        way: {
            "largest_difference": each.largest_difference,
            "bench_cpu_ms_per_sequence": statistics.median(each.cpu_ms),
        }
        for way, each in measured.items()
    }
    return rate_rows(part, {way: each.rates for way, each in measured.items()}, compared_with=compared_with, more=more)


def largest_difference(scores: Sequence[float], reference: Sequence[float]) -> float:
    """Of two lists of as many scores."""
    assert all(map(math.isfinite, [*scores, *reference])), "a score is missing"
    return max(abs(score - other) for score, other in zip(scores, reference, strict=True))


def check_difference(where: str, way: str, difference: float) -> None:
    """Hold a way to what it promises."""
    if way in {IN_PROCESS, EXACT, "sharing", "no sharing"}:
        assert difference == 0, f"{where}: other bits than the first way ({difference:.2g})"
    if way.endswith("float32"):
        assert difference <= SAME_SCORE, f"{where}: {difference:.2g} from the service; it computes something else"


def _ways(model: Subject, servers: Mapping[str, Server], connections: int | None) -> dict[str, Way]:
    """In process, then each server: one request, or singles over a number of connections."""
    ways = {IN_PROCESS: in_process(Scorer(model.bundle))}
    if OPENVINO in servers:
        ways[IN_PROCESS_OPENVINO] = in_process(Scorer(model.bundle, runtime="openvino"))
    for name, server in servers.items():
        if name.startswith("plain"):
            ways[name] = (
                plain_one_request(server.url) if connections is None else plain_singles(server.url, connections)
            )
        else:
            ways[name] = one_request(server.url) if connections is None else singles(server.url, connections)
    return ways


def in_process(scorer: Scorer) -> Way:
    """The limit: tokenizer, batches and engine in this process, without HTTP."""
    return lambda items: scorer.score(items).floats


def one_request(url: str) -> Way:
    """All items in one request to the service."""
    return lambda items: [score for answer in _send(url, [{"items": _wire(items)}], 1) for score in scores_of(answer)]


def singles(url: str, connections: int) -> Way:
    """A request to the service for each item."""

    def run(items: Items) -> list[float]:
        answers = _send(url, [{"items": [item]} for item in _wire(items)], connections)
        return [score for answer in answers for score in scores_of(answer)]

    return run


def plain_one_request(url: str) -> Way:
    """All texts in one request to the plain handler."""
    return lambda items: [score for answer in _send(url, [{"texts": texts_of(items)}], 1) for score in answer["scores"]]


def plain_singles(url: str, connections: int) -> Way:
    """A request to the plain handler for each text."""

    def run(items: Items) -> list[float]:
        answers = _send(url, [{"texts": [text]} for text in texts_of(items)], connections)
        return [score for answer in answers for score in answer["scores"]]

    return run


def scores_of(answer: Any) -> list[float]:
    """The scores of an answer of the service, NaN where there is none."""
    return [math.nan if result["score"] is None else result["score"] for result in answer["results"]]


def _send(url: str, documents: Sequence[Any], connections: int) -> list[Any]:
    requests = [post(url, document) for document in documents]
    answers: list[Answer] = asyncio.run(closed_loop(url, requests, connections=connections))
    for answer in answers:
        assert answer.status == 200, f"{url}: HTTP {answer.status} {answer.body[:300]!r}"
    return [answer.json() for answer in answers]


def _wire(items: Items) -> list[Any]:
    return [{"text": item} if isinstance(item, str) else item for item in items]


def texts_of(items: Items) -> list[str]:
    """What a plain handler is sent: it knows no groups."""
    texts: list[str] = []
    for item in items:
        texts += [item] if isinstance(item, str) else [item["prompt"] + each for each in item["completions"]]
    return texts


def _skip(what: str, why: str) -> None:
    tqdm.write(f"skipped: {what}: {why}", file=sys.stderr)
