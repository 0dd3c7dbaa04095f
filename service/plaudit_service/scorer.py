"""In-process scoring: the same tokenization, batches and engine as the service, without HTTP and queue."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from plaudit_service.batching import Backlog
from plaudit_service.bundle import Bundle, load_bundle
from plaudit_service.engines import open_engine
from plaudit_service.errors import UnknownModel
from plaudit_service.model import Model, Outcome
from plaudit_service.prefixes import PrefixCache
from plaudit_service.settings import DEFAULT_MAX_BATCH_TOKENS, DEFAULT_PREFIX_CACHE_BYTES
from plaudit_service.tokenization import Ids, TokenizedText
from plaudit_service.wire import Result, Truncation, check_request


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
        """The scores, NaN where there is none."""
        return [float("nan") if result.score is None else result.score for result in self._results]


class Scorer:
    """Scores items with a bundle in this process; `score` has the signature of the client's.

    Args:
        bundle: A bundle directory, or a loaded bundle.
        num_threads: Threads of the engine; 0: one per core that this process may use.
        max_batch_tokens: Limit of rows x longest row of one engine call.
        share_prefixes: Whether tokens that causal sequences begin with in common are computed only once.
        runtime: `onnxruntime` or `openvino`.
        provider: `cpu` or `cuda`.

    Raises:
        BundleError: the bundle cannot be used.
    """

    def __init__(
        self,
        bundle: Path | str | Bundle,
        *,
        num_threads: int = 0,
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        share_prefixes: bool = True,
        runtime: str = "onnxruntime",
        provider: str = "cpu",
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        engine = open_engine(self.bundle, runtime=runtime, provider=provider, num_threads=num_threads)
        self.model = Model(self.bundle, engine, PrefixCache(DEFAULT_PREFIX_CACHE_BYTES) if share_prefixes else None)
        self._max_batch_tokens = max_batch_tokens

    def score(
        self,
        items: Sequence[Mapping[str, Any] | str],
        *,
        model: str | None = None,
        truncation: Truncation = "error",
        raw: bool = False,
        fingerprint: str | None = None,
        engine: str | None = None,
    ) -> Scores:
        """Score items in any form of the wire; a plain string is a text. The arguments are those of `/score`.

        Raises:
            InvalidRequest: an item has a wrong shape; the message says which.
            UnknownModel, Mismatch: another model, fingerprint or engine is asked for.
        """
        wire = [{"text": item} if isinstance(item, str) else item for item in items]
        fields = {"truncation": truncation, "raw": raw, "model": model, "fingerprint": fingerprint, "engine": engine}
        request = check_request({"items": wire, **fields})
        if model not in {None, self.bundle.name}:
            raise UnknownModel(f'model "{model}" is not loaded; here: {self.bundle.name}')
        self.model.identity.check_pins(request)
        texts = self.model.tokenization.tokenize(request.items, truncation)
        outcomes = self._compute([text for text in texts if isinstance(text, TokenizedText)])
        results = self.model.results(texts, outcomes, raw=raw)
        return Scores(
            results, model=self.bundle.name, fingerprint=self.bundle.fingerprint, engine=self.model.engine.name
        )

    def _compute(self, texts: Sequence[TokenizedText]) -> list[Outcome]:
        model = self.model
        backlog: Backlog[_Waiting] = model.new_backlog()
        for place, text in enumerate(texts):
            backlog.add(_Waiting(place, text))
        outcomes: dict[int, Outcome] = {}
        while (batch := backlog.take(max_padded_tokens=self._max_batch_tokens)) is not None:
            computed = model.compute([waiting.text for waiting in batch.sequences], batch.num_prefix_tokens)
            for waiting, outcome in zip(batch.sequences, computed, strict=True):
                outcomes[waiting.place] = outcome
        return [outcomes[place] for place in range(len(texts))]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A sequence of one call, which all arrived at once."""

    place: int
    text: TokenizedText
    arrival: int = 0

    @property
    def token_ids(self) -> Ids:
        return self.text.token_ids
