"""Engines run one batch of sequences on one device and return raw head values.

Knows nothing of texts, queues or HTTP. One interface, `Engine`; one implementation, ONNX Runtime on the CPU.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from plaudit_service.bundle import GRAPH, Bundle
from plaudit_service.errors import BundleError
from plaudit_service.tokenization import Ids, TokenizedText

Heads = npt.NDArray[np.float32]
# By the names of the graph's inputs.
Feeds = dict[str, npt.NDArray[Any]]

# A call whose longest row is one token takes another kernel and gives other last bits; two tokens do not.
_MIN_TOKENS = 2

_INPUTS = {
    "causal": {"input_ids", "attention_mask", "position_ids", "prefix_index", "last_index"},
    "encoder": {"input_ids", "attention_mask", "token_type_ids"},
    "plain": {"input_ids", "attention_mask", "token_type_ids", "position_ids"},
}


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first tokens of a sequence, computed, so that sequences that begin with them continue from there.

    Attributes:
        num_tokens: P.
        past: `past.{layer}.{key,value}`, each of shape (1, H, P, D).
    """

    num_tokens: int
    past: Mapping[str, npt.NDArray[Any]]


class Engine(Protocol):
    """What a model needs of an engine. Its methods are called from one thread at a time."""

    name: str

    def run(self, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> Heads:
        """Raw head values of every sequence, shape (B, heads), float32; raises whatever the runtime raises.

        Every sequence is longer than the prefix and begins with its tokens.
        """
        ...

    def compute_prefix(self, token_ids: Ids) -> Prefix:
        """Compute the prefix of a causal model; `token_ids` of shape (P,)."""
        ...


def padded_tokens(lengths: Sequence[int]) -> int:
    """Tokens that one call on sequences of these lengths computes, padding included."""
    return len(lengths) * max(_MIN_TOKENS, *lengths)


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU: in float32 the bits of a score do not depend on the batch."""

    def __init__(self, bundle: Bundle, *, num_threads: int = 0) -> None:
        """Build the session.

        Args:
            bundle: A verified bundle.
            num_threads: Threads of one call; 0: one per core that this process may use.

        Raises:
            BundleError: the graph cannot be loaded, or is not of the contract.
        """
        scoring = bundle.scoring
        self.name = f"onnxruntime-cpu-{scoring.precision}"
        self._kind = scoring.kind
        self._pad_id = scoring.pad_token_id or 0
        self._output = "logits" if scoring.kind == "plain" else "scores"
        self._num_heads = len(scoring.heads)
        self._session = build_session(bundle.path / GRAPH, num_threads)
        self._inputs = {tensor.name: tensor for tensor in self._session.get_inputs()}
        self._check_graph(bundle.path)
        past = {
            name: np.zeros([1, tensor.shape[1], 0, tensor.shape[3]], dtype=_DTYPES[tensor.type])
            for name, tensor in self._inputs.items()
            if name.startswith("past.")
        }
        self._no_prefix = Prefix(0, past)

    def run(self, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> Heads:
        """Raw head values of every sequence, shape (B, heads), float32."""
        (scores,) = self._call([self._output], batch, prefix or self._no_prefix)
        return np.asarray(scores, dtype=np.float32).reshape(len(batch), self._num_heads)

    def compute_prefix(self, token_ids: Ids) -> Prefix:
        """Keys and values of the tokens, cut to their number where the call was padded."""
        names = list(self._no_prefix.past)
        text = TokenizedText(token_ids, None, len(token_ids), truncated=False)
        outputs = self._call([name.replace("past.", "present.") for name in names], [text], self._no_prefix)
        return Prefix(
            len(token_ids),
            {name: value[:, :, : len(token_ids)] for name, value in zip(names, outputs, strict=True)},
        )

    def _call(self, outputs: list[str], batch: Sequence[TokenizedText], prefix: Prefix) -> list[npt.NDArray[Any]]:
        result: list[npt.NDArray[Any]] = self._session.run(outputs, self.feeds(batch, prefix))
        return result

    def feeds(self, batch: Sequence[TokenizedText], prefix: Prefix | None = None) -> Feeds:
        """What the graph is run on: what follows the prefix, the rows padded on the right to one length."""
        prefix = prefix or self._no_prefix
        P = prefix.num_tokens
        lengths = np.array([len(text.token_ids) - P for text in batch])
        shape = len(batch), max(_MIN_TOKENS, int(lengths.max()))
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
            **prefix.past,
        }
        return {name: feeds[name] for name in self._inputs}

    def _check_graph(self, path: Path) -> None:
        unknown = {name for name in self._inputs if not name.startswith("past.")} - _INPUTS[self._kind]
        outputs = {tensor.name for tensor in self._session.get_outputs()}
        if unknown or self._output not in outputs:
            what = f"takes {sorted(unknown)}" if unknown else f"has no output {self._output!r}"
            raise BundleError(f"bundle {path}: {GRAPH} {what}, which no {self._kind} graph does; export it again")


_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def build_session(graph: Path, num_threads: int) -> ort.InferenceSession:
    """A session on the CPU; `num_threads` 0: one for each core that this process may use.

    Raises:
        BundleError: the graph cannot be loaded.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal; errors are raised, and reported by us
    # A spinning worker takes the core that the event loop and the tokenizer need between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises classes of its own for each way a graph can be wrong
        reason = str(error).splitlines()[0]
        raise BundleError(f"bundle {graph.parent}: {graph.name} cannot be loaded: {reason}") from error
