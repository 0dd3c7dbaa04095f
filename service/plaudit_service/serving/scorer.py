"""In-process scoring: the same tokenization, batches and engine as the service, without HTTP and queue."""

import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

from plaudit_service.bundles.bundle import Bundle, load_bundle
from plaudit_service.engine.engine_threads import WHOLE, EngineThreads
from plaudit_service.engine.engines import open_engines
from plaudit_service.engine.model import Model, Outcome
from plaudit_service.engine.prefixes import PrefixCache
from plaudit_service.errors import UnknownModel
from plaudit_service.items import Along, ScoreRequest, Truncation, check_request
from plaudit_service.queueing.batching import Backlog, Batch
from plaudit_service.results import Identity, Result
from plaudit_service.serving.combining import parse_combinations
from plaudit_service.text.token_ids import Ids
from plaudit_service.text.tokenization import Asked, TokenizedText


class Scores(Sequence[Result]):
    """The results of one call, one per sequence, in order."""

    def __init__(self, results: Sequence[Result], *, model: str, fingerprint: str, engine: str) -> None:
        self._results = tuple(results)
        self.model = model
        self.fingerprint = fingerprint
        self.engine = engine

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    @property
    def floats(self) -> list[float]:
        """One number per sequence, NaN for a sequence without a score."""
        return [float("nan") if result.score is None else result.score for result in self._results]


class _InProcess(ABC):
    """What scores items in this process.

    Attributes:
        identity: What answers name and calls may pin.
    """

    identity: Identity

    @abstractmethod
    def results(self, request: ScoreRequest) -> list[Result]:
        """One result per sequence, in order.

        Raises:
            InvalidRequest: an item cannot be scored.
        """

    def score(
        self,
        items: Sequence[Mapping[str, Any] | str],
        *,
        model: str | None = None,
        truncation: Truncation = "error",
        raw: bool = False,
        fingerprint: str | None = None,
        engine: str | None = None,
        along: Along = "none",
        explain: bool = False,
    ) -> Scores:
        """Score items in any form of `POST /score`; a plain string is a text. The arguments are those of `POST /score`.

        Raises:
            InvalidRequest: an item has a wrong form; the message says which.
            UnknownModel, Mismatch: the request names another model, fingerprint or engine than the loaded one.
        """
        wire = [{"text": item} if isinstance(item, str) else item for item in items]
        fields = {"truncation": truncation, "raw": raw, "model": model, "fingerprint": fingerprint, "engine": engine}
        request = check_request({"items": wire, **fields, "along": along, "explain": explain})
        identity = self.identity
        if model not in {None, identity.name}:
            raise UnknownModel(f'model "{model}" is not loaded; here: {identity.name}')
        identity.check_pins(request)
        return Scores(
            self.results(request), model=identity.name, fingerprint=identity.fingerprint, engine=identity.engine
        )


class Scorer(_InProcess):
    """Scores items with a bundle in this process; `score` has the signature of the client's.

    Args:
        bundle: A bundle directory, or a loaded bundle.
        num_threads: Threads of the engine; 0: one per core that this process may use.
        max_batch_tokens: Largest batch of one engine call, in padded tokens (rows x longest row); None: by device.
        share_prefixes: Whether to compute tokens that causal sequences have in common at their start only once.
        runtime: `onnxruntime` or `openvino`.
        device: `cpu`, `cuda` (the first device) or `cuda:N`.
        engine_calls: Engine calls at the same time, each with its share of the threads.

    Raises:
        BundleError: the bundle cannot be used.
    """

    def __init__(
        self,
        bundle: Path | str | Bundle,
        *,
        num_threads: int = 0,
        max_batch_tokens: int | None = None,
        share_prefixes: bool = True,
        runtime: str = "onnxruntime",
        device: str = "cpu",
        engine_calls: int = 1,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        engine, *shares = open_engines(
            self.bundle, runtime=runtime, device=device, num_threads=num_threads, num_calls=engine_calls
        )
        prefixes = PrefixCache(engine.prefix_cache_bytes) if share_prefixes else None
        self.model = Model(self.bundle, engine, prefixes, shares)
        self.identity = self.model.identity
        self._max_batch_tokens = max_batch_tokens or engine.costs.batch_tokens // engine_calls
        self._threads = None if engine_calls == 1 else EngineThreads(engine_calls)
        if self._threads is not None:
            weakref.finalize(self, self._threads.stop)

    def results(self, request: ScoreRequest) -> list[Result]:
        """One result per sequence, in order.

        Raises:
            InvalidRequest: an item cannot be scored by this model.
        """
        self.model.check_request(request)
        asked = Asked(request.truncation, request.along, request.explain)
        texts = self.model.tokenization.tokenize(request.items, asked)
        outcomes = self._compute([text for text in texts if isinstance(text, TokenizedText)])
        return self.model.results(texts, outcomes, raw=request.raw)

    def _compute(self, texts: Sequence[TokenizedText]) -> dict[int, Outcome]:
        """The outcomes by the texts' indexes."""
        model = self.model
        backlog: Backlog[_Waiting] = Backlog(model.engine.costs, model.longest_kept)
        for text in texts:
            backlog.add(_Waiting(text))
        outcomes: dict[int, Outcome] = {}
        for batch, computed in self._batches(backlog):
            for waiting, outcome in zip(batch.sequences, computed, strict=True):
                outcomes[waiting.text.index] = outcome
        return outcomes

    def _batches(self, backlog: "Backlog[_Waiting]") -> Iterator[tuple["Batch[_Waiting]", list[Outcome]]]:
        """All batches of a backlog, computed."""
        if self._threads is None:
            while (batch := backlog.take(max_padded_tokens=self._max_batch_tokens)) is not None:
                yield batch, _compute_batch(self.model, WHOLE, batch)
            return
        computing: deque[tuple[Batch[_Waiting], Future[list[Outcome]]]] = deque()
        while (batch := backlog.take(max_padded_tokens=self._max_batch_tokens)) is not None:
            if len(computing) > self._threads.num_calls:  # with one that lies ready, none takes the device for itself
                done, future = computing.popleft()
                yield done, future.result()
            computing.append((batch, self._threads.submit(partial(_compute_batch, self.model, batch=batch))))
        for done, future in computing:
            yield done, future.result()


class CombinedScorer(_InProcess):
    """Scores items with a combination of bundles in this process; the scores are those of `plaudit-serve --combine`.

    `CombinedScorer("safe=0.7*helpful+0.3*harmless", [Scorer("rm/helpful"), Scorer("rm/harmless")]).score(items)`

    Args:
        combination: NAME=FORMULA, in which bundles stand by their names.
        scorers: One scorer for each part, in any order; further scorers are not used.

    Raises:
        SettingsError: the formula cannot be read, its name is taken, a part has no scorer, or two bundles have the
            same name.
    """

    def __init__(self, combination: str, scorers: Sequence[Scorer]) -> None:
        (self.combination,) = parse_combinations([combination], [scorer.identity.name for scorer in scorers])
        by_name = {scorer.identity.name: scorer for scorer in scorers}
        self.parts = tuple(by_name[part] for part in self.combination.parts)
        self.identity = self.combination.identity([part.identity for part in self.parts])

    def results(self, request: ScoreRequest) -> list[Result]:
        """One result per sequence, in order; `heads` has the score of each part.

        Raises:
            InvalidRequest: an item cannot be scored by a part, or is token ids for parts with different tokenizers.
        """
        self.combination.check_request(request, [part.bundle for part in self.parts])
        rows = zip(*(part.results(request) for part in self.parts), strict=True)
        return [self.combination.combine(row) for row in rows]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A sequence of one call, which all arrived at once from one client."""

    text: TokenizedText
    client: str = ""
    turn: int = 0
    arrival: int = 0

    @property
    def token_ids(self) -> Ids:
        return self.text.token_ids


def _compute_batch(model: Model, lane: int, batch: Batch[_Waiting]) -> list[Outcome]:
    return model.compute([waiting.text for waiting in batch.sequences], batch.num_prefix_tokens, lane=lane)
