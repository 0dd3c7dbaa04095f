"""Makes the graph of a reduced precision, and measures what it costs against float32. Knows nothing of checkpoints."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plaudit_export.checks.comparison import Comparison, Scores, kendall, pair_agreement, spearman
from plaudit_export.errors import ExportError
from plaudit_export.graphs.quantization import Activation, calibrate, quantize
from plaudit_export.graphs.tracing import OPSET
from plaudit_service.bundles.bundle import GOLDEN, GRAPH, Bundle, Manifest, Scoring, Source
from plaudit_service.engine.calls import graph_bytes
from plaudit_service.engine.engines import GraphEngine, open_engine
from plaudit_service.engine.links import linked
from plaudit_service.engine.runtime import Runtime
from plaudit_service.errors import BundleError
from plaudit_service.queueing.batching import cut
from plaudit_service.text.tokenization import TokenizedText

Say = Callable[[str], None]
Texts = Sequence[TokenizedText]

# Under this share of pairs ranked as float32 ranks them an int8 bundle is refused.
MIN_AGREEMENT = 0.98
# Wanted on the calibration texts: others agree a little less.
_WANTED_AGREEMENT = 0.985
# At most this share of the products' weights stays in float32; more would cost the speed that int8 is for.
_MAX_KEPT_SHARE = 0.35
_NUM_SENSITIVITY_TEXTS = 48
_NUM_TIMED_TEXTS = 96
_NUM_TIMED_ROUNDS = 5


class GraphScorer:
    """Scores token sequences with the graph of one directory, in the batches of the service.

    Args:
        directory: holds the graph.
        scoring: rules of scoring.
        runtime: what computes instead of the graph; None: the graph, in ONNX Runtime on the CPU.

    Raises:
        ExportError: the graph cannot be loaded.
    """

    def __init__(self, directory: Path, scoring: Scoring, runtime: Runtime | None = None) -> None:
        source = Source(id="draft", architecture="draft", attention="draft")
        manifest = Manifest(
            name="draft",
            scoring=scoring,
            tolerance=1,
            trained_at="end" if scoring.steps is None else "steps",
            opset=OPSET,
            source=source,
            versions={},
            sha256={GOLDEN: "0" * 64},
        )
        self._weights = np.array([head.weight for head in scoring.heads])
        self._link = scoring.link
        bundle = Bundle(directory, manifest, None, ())
        try:
            self.engine = open_engine(bundle) if runtime is None else GraphEngine(bundle, runtime)
        except BundleError as error:
            raise ExportError(f"the new graph cannot be run: {error}") from error

    def heads(self, texts: Texts, what: str) -> Scores:
        """Raw head values, shape (N, heads), float64; `what` is shown on a progress bar.

        Raises:
            ExportError: the graph fails on a text, or gives a number that is not finite.
        """
        heads = np.zeros((len(texts), len(self._weights)))
        with tqdm(total=len(texts), desc=what, unit="text", leave=False, disable=None) as bar:
            for batch in self.batches(texts):
                try:
                    heads[batch] = self.engine.run([texts[at] for at in batch])
                except Exception as error:  # the runtime raises classes of its own
                    raise ExportError(f"{self.engine.name} fails on the new graph: {error}") from error
                bar.update(len(batch))
        if not np.isfinite(heads).all():
            num_lost = int((~np.isfinite(heads).all(axis=1)).sum())
            raise ExportError(
                f"{num_lost} of {len(texts)} texts get a score that is not finite: the model's values leave the range "
                "of this precision; export it in fp32"
            )
        return heads

    def scores(self, texts: Texts, what: str) -> Scores:
        """Raw scores, shape (N,), float64."""
        return self.weigh(self.heads(texts, what))

    def weigh(self, heads: Scores) -> Scores:
        """Raw scores of head values."""
        scores: Scores = linked(heads @ self._weights, self._link)
        return scores

    def batches(self, texts: Texts) -> list[list[int]]:
        """Which texts are computed together."""
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at].token_ids))
        lengths = [len(texts[at].token_ids) for at in order]
        costs = self.engine.costs
        return [order[start:stop] for start, stop in cut(lengths, costs, max_padded_tokens=costs.batch_tokens)]


@dataclass(frozen=True)
class Int8:
    """A written int8 graph: the names of the activations whose products stayed in float32, of all names."""

    kept: tuple[str, ...]
    num_products: int

    def describe(self) -> str:
        """How many stayed in float32."""
        return f"{len(self.kept)} of {self.num_products}"


def write_int8(float_directory: Path, directory: Path, scoring: Scoring, texts: Texts, scratch: Path, say: Say) -> Int8:
    """Write the int8 graph that ranks the calibration texts as float32 does, as far as that can be had.

    All products become integer products; where the pairs then agree too little, the most sensitive ones go back to
    float32, one after the other.

    Args:
        float_directory: holds the float32 graph.
        directory: where the int8 graph goes.
        scoring: rules of scoring, in int8.
        texts: to calibrate on.
        scratch: an empty directory for files in between.
        say: called with a line before each long step.

    Raises:
        ExportError: there are too few texts, or the graph fails on them.
    """
    texts = [text for text in texts if len(text.token_ids) > 1]
    if len(texts) < 2:
        raise ExportError(f"int8: {len(texts)} texts to calibrate on, at least 2 are needed (--calibrate)")
    float_scorer = GraphScorer(float_directory, scoring.model_copy(update={"precision": "fp32"}))
    say(f"calibrating on {len(texts)} texts")
    feeds = (float_scorer.engine.feeds([text]) for text in tqdm(texts, unit="text", leave=False, disable=None))
    activations = calibrate(float_directory / GRAPH, feeds, scratch)
    if not activations:
        raise ExportError("int8: the graph has no product of activations and weights; export it in fp32")
    reference = float_scorer.scores(texts, "float32")
    kept: list[str] = []
    order: list[str] | None = None
    while True:
        quantize(float_directory / GRAPH, activations, kept, directory / GRAPH)
        agreement = pair_agreement(reference, GraphScorer(directory, scoring).scores(texts, "int8"))
        if agreement >= _WANTED_AGREEMENT:
            break
        if order is None:
            say(f"{agreement:.2%} of the pairs agree on the calibration texts; looking for the sensitive products")
            order = _by_sensitivity(float_scorer, float_directory, scoring, activations, texts, scratch)
        if not order:
            break
        kept.append(order.pop(0))
    return Int8(tuple(kept), len(activations))


def _by_sensitivity(
    float_scorer: GraphScorer,
    float_directory: Path,
    scoring: Scoring,
    activations: dict[str, Activation],
    texts: Texts,
    scratch: Path,
) -> list[str]:
    """The products that may go back to float32, the one that moves the scores most first."""
    texts = texts[:: -(-len(texts) // _NUM_SENSITIVITY_TEXTS)]
    reference = float_scorer.scores(texts, "float32")
    moved = {}
    for name in tqdm(activations, desc="sensitivity", unit="product", leave=False, disable=None):
        others = [other for other in activations if other != name]
        quantize(float_directory / GRAPH, activations, others, scratch / GRAPH)
        moved[name] = float(np.std(GraphScorer(scratch, scoring).scores(texts, "int8") - reference))
    order = sorted(moved, key=lambda name: -moved[name])
    return order[: int(_MAX_KEPT_SHARE * len(order))]


@dataclass(frozen=True)
class Float32:
    """What a reduced precision is held against.

    Attributes:
        scores: raw scores of the texts, shape (N,).
        size_bytes: of the graph and its weights.
        scorer: with the graph, to be timed; None where none was written.
    """

    scores: Scores
    size_bytes: int
    scorer: GraphScorer | None = None


def graph_float32(directory: Path, scoring: Scoring, texts: Texts) -> Float32:
    """What the float32 graph of a directory gives the texts."""
    scorer = GraphScorer(directory, scoring.model_copy(update={"precision": "fp32"}))
    return Float32(scorer.scores(texts, "float32"), graph_bytes(directory), scorer)


def compare(
    float32: Float32,
    directory: Path,
    scoring: Scoring,
    texts: Texts,
    *,
    size_bytes: int,
    held_out: bool,
    left_in_float: str,
    emulated: Scores | None = None,
) -> Comparison:
    """Hold a graph of reduced precision against float32.

    Args:
        float32: of the same texts.
        directory: holds the graph of the reduced precision that is run.
        scoring: rules of scoring, in the reduced precision.
        texts: to score.
        size_bytes: of the bundle's graph and its weights.
        held_out: none of them was calibrated on.
        left_in_float: what stayed in float32.
        emulated: what torch made of the texts in the reduced precision, shape (N,); None: the graph is run.
    """
    reference, speed_ratio = float32.scores, None
    if emulated is None:
        scorer = GraphScorer(directory, scoring)
        scores = scorer.scores(texts, scoring.precision)
        if float32.scorer is not None:
            speed_ratio = _speed_ratio((float32.scorer, scorer), texts[:_NUM_TIMED_TEXTS])
    else:
        scores = emulated
    difference = np.abs(scores - reference)
    return Comparison(
        num_texts=len(texts),
        held_out=held_out,
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        score_std=float(reference.std()),
        spearman=spearman(reference, scores),
        kendall=kendall(reference, scores),
        pair_agreement=pair_agreement(reference, scores),
        size_bytes=size_bytes,
        size_ratio=size_bytes / float32.size_bytes,
        speed_ratio=speed_ratio,
        left_in_float=left_in_float,
    )


def _speed_ratio(scorers: tuple[GraphScorer, GraphScorer], texts: Texts) -> float:
    """Median over rounds that time both, one after the other, so that a busy machine slows both."""
    ratios = []
    for _ in tqdm(range(_NUM_TIMED_ROUNDS), desc="timing", unit="round", leave=False, disable=None):
        seconds = []
        for scorer in scorers:
            started = time.perf_counter()
            for batch in scorer.batches(texts):
                scorer.engine.run([texts[at] for at in batch])
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
