"""An engine runs one batch of sequences of one bundle's graph and returns raw head values.

Knows nothing of texts, queues or HTTP, nor of what runs the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from plaudit_service.bundles.bundle import GRAPH, Bundle
from plaudit_service.engine.runtime import Costs, Input, Runtime
from plaudit_service.engine.runtimes import open_runtimes
from plaudit_service.errors import BundleError
from plaudit_service.text.token_ids import Ids
from plaudit_service.text.tokenization import TokenizedText

Heads = npt.NDArray[np.float32]
# By the names of the graph's inputs; keys and values of a prefix are where the runtime keeps them.
Feeds = dict[str, Any]

# The output with the head's values at tokens that are named.
_ALONG = "token_scores"

# A call whose longest row is one token takes another kernel and gives other last bits; two tokens do not.
_MIN_TOKENS = 2

# Numbers that a layer keeps of one token; far above any model's.
_MAX_PAST_ENTRIES = 1 << 31

_INPUTS = {
    "causal": {
        "input_ids",
        "attention_mask",
        "position_ids",
        "prefix_index",
        "last_index",
        "token_index",
        "present_index",
    },
    "encoder": {"input_ids", "attention_mask", "token_type_ids"},
    "plain": {"input_ids", "attention_mask", "token_type_ids", "position_ids"},
}


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first tokens of a sequence, computed, so that sequences that begin with them continue from there.

    Attributes:
        num_tokens: P.
        past: `past.{layer}.{key,value}`, each of shape (1, H, P, D), where the runtime keeps them.
        num_bytes: Memory that they take.
        along: What the head gives at each token, shape (P, heads), float32; None where nobody has asked for it.
    """

    num_tokens: int
    past: Mapping[str, Any]
    num_bytes: int
    along: Heads | None = None


class Traits(Protocol):
    """What is known of what computes the scores.

    Attributes:
        name: What computes the scores: runtime, device, precision.
        tolerance: How far it may move a score, in standard deviations of the golden texts' scores; 0: not at all.
        promises_bits: Whether a score's bits are to be the same in every batch.
        costs: Of its device.
        lacks_along: Why it has no head values for tokens; None: it has them.
    """

    name: str
    tolerance: float
    promises_bits: bool
    costs: Costs
    lacks_along: str | None


class Engine(Traits, Protocol):
    """What a model needs of an engine in this process. Its methods are called by one thread at a time."""

    def run(self, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> Heads:
        """Raw head values of every sequence, shape (B, heads), float32; raises whatever the runtime raises.

        Every sequence is longer than the prefix and begins with its tokens.
        """
        ...

    def run_along(self, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> tuple[Heads, list[Heads]]:
        """As `run`, and what the head gives at every token, shape (T, heads), of each sequence that has `places`.

        Not where `lacks_along`. A sequence without places may get fewer tokens. The prefix has `along`.
        """
        ...

    def compute_prefix(self, token_ids: Ids, base: Prefix | None = None, *, along: bool = False) -> Prefix:
        """Compute the prefix of a causal model.

        Args:
            token_ids: shape (P,).
            base: A prefix of it, computed; with `along` where that is asked for.
            along: Whether the prefix keeps what the head gives at each of its tokens.
        """
        ...


def _is_past(tensor: Input) -> bool:
    """Whether an input can hold the keys or values of a prefix: shape (N, H, P, D), H and D given."""
    heads, size = tensor.shape[1::2] if len(tensor.shape) == 4 else (None, None)
    return heads is not None and size is not None and 0 < heads * size < _MAX_PAST_ENTRIES


def padded_tokens(lengths: Sequence[int], costs: Costs) -> int:
    """Tokens that one call on sequences of these lengths computes, padding included."""
    if not costs.pads:
        return sum(lengths)
    return len(lengths) * _row_tokens(max(lengths), costs)


def _row_tokens(longest: int, costs: Costs) -> int:
    return -(-max(_MIN_TOKENS, longest) // costs.row_multiple) * costs.row_multiple


def open_engine(
    bundle: Bundle, *, runtime: str = "onnxruntime", device: str = "cpu", num_threads: int = 0
) -> "GraphEngine":
    """Load a bundle's graph for one call at a time; as `open_engines`."""
    (engine,) = open_engines(bundle, runtime=runtime, device=device, num_threads=num_threads, num_calls=1)
    return engine


def open_engines(bundle: Bundle, *, runtime: str, device: str, num_threads: int, num_calls: int) -> list["GraphEngine"]:
    """Load a bundle's graph, for the whole device and then for each of several calls at once; as `open_runtimes`.

    Raises:
        BundleError: there is no graph, it cannot be loaded, or is not of the contract.
        SettingsError: the runtime has no such device, or no calls at once there.
        ServiceError: the device is not there.
    """
    if bundle.scoring.engine != "onnx":
        raise BundleError(
            f"bundle {bundle.path}: has no graph, it is for {bundle.scoring.engine}; serve it with --runtime vllm and "
            "--engine-url, or export the checkpoint without --engine"
        )
    precision, graph = bundle.scoring.precision, bundle.path / GRAPH
    runtimes = open_runtimes(
        graph, precision, runtime=runtime, device=device, num_threads=num_threads, num_calls=num_calls
    )
    return [GraphEngine(bundle, each) for each in runtimes]


class GraphEngine:
    """Pads a batch, feeds the graph, and takes its outputs.

    Args:
        bundle: A verified bundle.
        runtime: Its loaded graph.

    Attributes:
        prefix_cache_bytes: Of the runtime.

    Raises:
        BundleError: the graph is not of the contract.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        scoring = bundle.scoring
        self.name = runtime.name if runtime.name.startswith("openvino") else f"{runtime.name}-{scoring.precision}"
        self.tolerance, self.promises_bits = runtime.tolerance, runtime.promises_bits
        self.costs, self.prefix_cache_bytes = runtime.costs, runtime.prefix_cache_bytes
        self._max_tokens = scoring.max_tokens
        self._pad_id = scoring.pad_token_id or 0
        self._output = "logits" if scoring.kind == "plain" else "scores"
        self._num_heads = len(scoring.heads)
        self._runtime = runtime
        self.lacks_along = self._why_no_along(scoring.kind)
        self._check_graph(bundle.path, scoring.kind)
        pasts = {name: tensor for name, tensor in runtime.inputs.items() if name.startswith("past.")}
        no_values = np.zeros((0, self._num_heads), dtype=np.float32)
        self._no_prefix = Prefix(0, {name: runtime.no_tokens(name) for name in pasts}, 0, no_values)
        self._bytes_per_prefix_token = sum(
            (tensor.shape[1] or 0) * (tensor.shape[3] or 0) * tensor.itemsize for tensor in pasts.values()
        )

    def run(self, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> Heads:
        """Raw head values of every sequence, shape (B, heads), float32."""
        (scores,) = self._runtime.run([self._output], self.feeds(batch, prefix))
        return np.asarray(scores, dtype=np.float32).reshape(len(batch), self._num_heads)

    def run_along(self, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> tuple[Heads, list[Heads]]:
        """As `run`, and what the head gives at the tokens of the sequences."""
        prefix = prefix or self._no_prefix
        assert prefix.along is not None
        P = prefix.num_tokens
        num_asked = max(len(text.token_ids) for text in batch if text.places is not None) - P
        feeds = self.feeds(batch, prefix, num_along=num_asked)
        scores, along = self._runtime.run([self._output, _ALONG], feeds)
        heads = np.asarray(scores, dtype=np.float32).reshape(len(batch), self._num_heads)
        return heads, [
            np.concatenate([prefix.along, row[: len(text.token_ids) - P]])
            for text, row in zip(batch, along, strict=True)
        ]

    def compute_prefix(self, token_ids: Ids, base: Prefix | None = None, *, along: bool = False) -> Prefix:
        """Keys and values of the tokens, cut to their number where the call was padded."""
        base, P = base or self._no_prefix, len(token_ids)
        names = list(self._no_prefix.past)
        text = TokenizedText(token_ids, None, P, truncated=False)
        outputs = [name.replace("past.", "present.") for name in names] + ([_ALONG] if along else [])
        feeds = self.feeds([text], base, num_present=P, num_along=P - base.num_tokens if along else 0)
        kept = self._runtime.run_kept(outputs, feeds)
        past = {name: self._runtime.cut(value, P) for name, value in zip(names, kept, strict=not along)}
        num_bytes = P * self._bytes_per_prefix_token
        if not along:
            return Prefix(P, past, num_bytes)
        assert base.along is not None
        values = np.concatenate([base.along, self._runtime.fetch(kept[-1])[0]])
        return Prefix(P, past, num_bytes + values.nbytes, values)

    def feeds(
        self,
        batch: Sequence[TokenizedText],
        prefix: Prefix | None = None,
        *,
        num_present: int = 0,
        num_along: int = 0,
    ) -> Feeds:
        """The graph's inputs for what follows the prefix, the rows padded on the right to one length.

        Args:
            batch: Sequences.
            prefix: What they all begin with.
            num_present: Of how many first tokens, those of the prefix included, keys and values are asked for.
            num_along: Of how many first tokens behind the prefix the head's values are asked for.
        """
        prefix = prefix or self._no_prefix
        P = prefix.num_tokens
        lengths = np.array([len(text.token_ids) - P for text in batch])
        longest = int(lengths.max())
        # The multiple is that of the total length. No padding has a position that the model does not have.
        padded = _row_tokens(P + max(_MIN_TOKENS, longest), self.costs) - P
        shape = len(batch), min(padded, max(_MIN_TOKENS, longest, self._max_tokens - P))
        input_ids = np.full(shape, self._pad_id, dtype=np.int64)
        type_ids = np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(batch):
            input_ids[row, : lengths[row]] = text.token_ids[P:]
            if text.type_ids is not None:
                type_ids[row, : lengths[row]] = text.type_ids[P:]
        feeds = {
            "input_ids": input_ids,
            "attention_mask": (np.arange(P + shape[1]) < P + lengths[:, None]).astype(np.int64),
            "token_type_ids": type_ids,
            "position_ids": np.tile(np.arange(P, P + shape[1]), (len(batch), 1)),
            "prefix_index": np.zeros(len(batch), dtype=np.int64),
            "last_index": lengths - 1,
            "token_index": np.arange(num_along),
            "present_index": np.arange(num_present),
            **prefix.past,
        }
        return {name: feeds[name] for name in self._runtime.inputs}

    def _why_no_along(self, kind: str) -> str | None:
        if _ALONG in self._runtime.outputs:
            return None
        if kind != "causal":
            return f"it is of kind {kind}, which makes one value of all tokens; leave along out"
        if "token_index" in self._runtime.inputs:  # the graph has them, and the runtime leaves them out
            return f"{self.name} computes the pooled token alone; serve with --runtime onnxruntime"
        return "its graph was exported before graphs had values for tokens; export it again"

    def _check_graph(self, path: Path, kind: str) -> None:
        for name, tensor in self._runtime.inputs.items():
            if name.startswith("past.") and not _is_past(tensor):
                raise BundleError(f"bundle {path}: {GRAPH}: {name} is not of shape [N, H, P, D]; export it again")
        unknown = {name for name in self._runtime.inputs if not name.startswith("past.")} - _INPUTS[kind]
        if unknown or self._output not in self._runtime.outputs:
            what = f"takes {sorted(unknown)}" if unknown else f"has no output {self._output!r}"
            raise BundleError(f"bundle {path}: {GRAPH} {what}, which no {kind} graph does; export it again")
