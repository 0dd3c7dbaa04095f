"""The loaded models of one process, their life cycle, and what is known of them. Knows nothing of HTTP."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from plaudit_service.bundle import Bundle
from plaudit_service.combining import Combination, parse_combinations
from plaudit_service.engine_thread import EngineThread
from plaudit_service.engines import open_engine
from plaudit_service.errors import InvalidRequest, SettingsError, Unavailable, UnknownModel
from plaudit_service.logs import log
from plaudit_service.metrics import Metrics
from plaudit_service.model import Model
from plaudit_service.parity import ParityReport
from plaudit_service.pipeline import CombinedPipeline, Pipeline
from plaudit_service.prefixes import PrefixCache
from plaudit_service.scheduler import Scheduler
from plaudit_service.settings import Settings

_LIMITS = (
    "max_sequences_per_request",
    "max_body_bytes",
    "max_text_chars",
    "max_request_chars",
    "max_queued_sequences",
    "max_queued_tokens",
)


class Service:
    """Everything behind the routes. A process is immutable: another reward model means another process.

    Args:
        bundles: Verified bundles with names of their own.
        settings: What the operator set.
        clock: Seconds that only grow; deadlines are on it.

    Attributes:
        alive: False once the engine hangs: only a new process can help.

    Raises:
        BundleError: a graph or tokenizer cannot be loaded.
        SettingsError: two bundles have one name, or a combination cannot be made of them.
    """

    def __init__(
        self, bundles: Sequence[Bundle], settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        names = [bundle.name for bundle in bundles]
        for name in names:
            if names.count(name) > 1:
                raise SettingsError(f'two bundles are named "{name}"; export one of them again with --name')
        combinations = parse_combinations(settings.combine, names)
        self.settings = settings
        self.clock = clock
        self.metrics = Metrics()
        self.parity: dict[str, ParityReport] = {}
        self.alive = True
        self._not_ready: str | None = "the golden texts are being checked"
        self._draining = False
        # One device, one thread: it takes the batches of all models in turn.
        self._engine_thread = EngineThread()
        self._tokenizer_threads = ThreadPoolExecutor(2, thread_name_prefix="tokenizer")
        self.pipelines = {bundle.name: self._load(bundle) for bundle in bundles}
        self.combined = {combination.name: self._combine(combination) for combination in combinations}
        self._by_name: dict[str, Pipeline | CombinedPipeline] = {**self.pipelines, **self.combined}
        self._tasks: list[asyncio.Task[None]] = []

    def _load(self, bundle: Bundle) -> Pipeline:
        settings = self.settings
        engine = open_engine(
            bundle, runtime=settings.runtime, provider=settings.provider, num_threads=settings.num_threads
        )
        prefixes = PrefixCache(settings.prefix_cache_bytes) if settings.share_prefixes else None
        model = Model(bundle, engine, prefixes)
        scheduler = Scheduler(model, self.settings, self.metrics, self._engine_thread, self.clock)
        self.metrics.model_info.labels(
            bundle.name, bundle.fingerprint, bundle.scoring.precision, self.settings.runtime
        ).set(1)
        return Pipeline(model, scheduler, self.metrics, self._tokenizer_threads, self.clock)

    def _combine(self, combination: Combination) -> CombinedPipeline:
        combined = CombinedPipeline(combination, [self.pipelines[part] for part in combination.parts], self.metrics)
        precisions = dict.fromkeys(part.model.bundle.scoring.precision for part in combined.parts)
        self.metrics.model_info.labels(
            combination.name, combined.identity.fingerprint, "+".join(precisions), self.settings.runtime
        ).set(1)
        return combined

    @property
    def not_ready(self) -> str | None:
        """Why `/score` is refused; None when it is answered."""
        return self._not_ready

    def require_ready(self) -> None:
        """Refuse to score before the golden texts were right, and after draining began.

        Raises:
            Unavailable: 503.
        """
        if self._not_ready is not None:
            raise Unavailable(f"{self._not_ready}; ask /readyz")

    def pipeline(self, model: str | None) -> Pipeline | CombinedPipeline:
        """The model or combination that a request names, or the only one.

        Raises:
            UnknownModel: there is none of that name.
            InvalidRequest: several are loaded and none is named.
        """
        pipelines = self._by_name
        loaded = ", ".join(pipelines)
        if model is None:
            if len(pipelines) > 1:
                raise InvalidRequest(f"model: not given, and several are loaded; choose one of {loaded}")
            return next(iter(pipelines.values()))
        if model not in pipelines:
            raise UnknownModel(f'model "{model}" is not loaded; here: {loaded}')
        return pipelines[model]

    def start(self) -> None:
        """Begin to take batches, and check the golden texts; must be called in the event loop."""
        self._spawn(self._check_parity())
        self._spawn(self._watch_engine())

    def drain(self) -> None:
        """Stop to be ready, for good; what was admitted is finished."""
        self._set_not_ready("the service is shutting down")
        self._draining = True

    async def stop(self) -> None:
        """End the tasks and threads."""
        self.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._engine_thread.stop()
        self._tokenizer_threads.shutdown(cancel_futures=True)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._set_not_ready(f"a background task failed ({type(error).__name__})")
            log("task_failed", level=logging.ERROR, error=error)

    def _set_not_ready(self, reason: str | None) -> None:
        if self._draining:
            return
        self._not_ready = reason
        self.metrics.ready.set(reason is None)

    async def _watch_engine(self) -> None:
        """Fail liveness when a call of the engine takes longer than any should."""
        timeout_s = self.settings.engine_timeout_s
        while (busy_s := self._engine_thread.busy_s) <= timeout_s:  # noqa: ASYNC110  a call that hangs tells nobody
            await asyncio.sleep(min(1.0, timeout_s - busy_s + 0.01))
        reason = f"the engine hangs: one call runs for more than {timeout_s:g} s"
        self._set_not_ready(reason)
        self.alive = False
        log("engine_hangs", level=logging.ERROR, seconds=busy_s)
        for pipeline in self.pipelines.values():
            pipeline.scheduler.fail(Unavailable(f"{reason}; another replica may answer"))

    async def _check_parity(self) -> None:
        wrong = []
        for name, pipeline in self.pipelines.items():
            try:
                report = self.parity[name] = await pipeline.check_parity()
            except InvalidRequest as error:
                wrong.append(f'model "{name}": its golden texts cannot be scored: {error}')
                continue
            self.metrics.batch_invariant.labels(name).set(report.batch_invariant)
            self.metrics.parity_max_abs_diff.labels(name).set(report.max_abs_diff)
            log("parity", model=name, **self._parity_info(name))
            if not report.ok:
                wrong.append(f'model "{name}" does not give its reference scores: {report.describe_worst()}')
        self._set_not_ready("; ".join(wrong) or None)
        log("not_ready" if wrong else "ready", reason=self._not_ready)

    def _parity_info(self, name: str) -> dict[str, Any]:
        report = self.parity[name]
        return {
            "ok": report.ok,
            "num_golden_texts": len(report.rows),
            "max_abs_diff": _finite(report.max_abs_diff),
            "batch_invariant": report.batch_invariant,
            "batch_max_abs_diff": _finite(report.batch_max_abs_diff),
            "worst": report.describe_worst(),
        }

    def info(self) -> dict[str, Any]:
        """The answer of `GET /info`."""
        return {
            "version": version("plaudit"),
            "ready": self._not_ready is None,
            "limits": {name: getattr(self.settings, name) for name in _LIMITS},
            "models": [
                *(self._model_info(pipeline.model) for pipeline in self.pipelines.values()),
                *(self._combined_info(combined) for combined in self.combined.values()),
            ],
        }

    def _model_info(self, model: Model) -> dict[str, Any]:
        name = model.bundle.name
        return {
            **asdict(model.identity),
            "runtime": self.settings.runtime,
            "manifest": model.bundle.manifest.model_dump(mode="json"),
            "parity": self._parity_info(name) if name in self.parity else None,
        }

    def _combined_info(self, combined: CombinedPipeline) -> dict[str, Any]:
        return {
            **asdict(combined.identity),
            "runtime": self.settings.runtime,
            "formula": combined.combination.formula,
            "parts": {part.identity.name: part.identity.fingerprint for part in combined.parts},
        }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
