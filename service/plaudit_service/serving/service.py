"""The loaded models of one process, their life cycle, and what is known of them. Knows nothing of HTTP."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from plaudit_service.bundles.bundle import Bundle
from plaudit_service.engine.calls import default_calls
from plaudit_service.engine.engine_threads import EngineThreads
from plaudit_service.engine.engines import open_engines
from plaudit_service.engine.machine import num_cores
from plaudit_service.engine.model import Model
from plaudit_service.engine.prefixes import PrefixCache
from plaudit_service.errors import InvalidRequest, Unavailable, UnknownModel
from plaudit_service.logs import log
from plaudit_service.metrics import Metrics
from plaudit_service.queueing.scheduler import Scheduler
from plaudit_service.serving.combining import parse_combinations
from plaudit_service.serving.parity import ParityReport
from plaudit_service.serving.pipeline import Pipeline
from plaudit_service.serving.served_model import ServedModel
from plaudit_service.settings import Settings

TOKENIZER_THREADS = 2

_MAX_TEXTS_SHOWN = 100  # golden texts in /info: the worst

_LIMITS = (
    "max_sequences_per_request",
    "max_body_bytes",
    "max_text_chars",
    "max_request_chars",
    "max_along_tokens",
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
        num_threads: Threads of the engine, of all its calls together.
        num_calls: Calls of the engine at once.
        alive: False once the engine hangs: only a new process can help.

    Raises:
        BundleError: a graph or tokenizer cannot be loaded.
        SettingsError: two bundles have one name, or a combination cannot be made of them.
    """

    def __init__(
        self, bundles: Sequence[Bundle], settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        combinations = parse_combinations(settings.combine, [bundle.name for bundle in bundles])
        self.settings = settings
        self.num_threads = settings.num_threads or num_cores()
        self.clock = clock
        self.metrics = Metrics()
        self.parity: dict[str, ParityReport] = {}
        self.alive = True
        self._not_ready: str | None = "the golden texts are being checked"
        self._draining = False
        self.num_calls = settings.engine_calls or default_calls(bundles, settings.computes_on, self.num_threads)
        # One device: its threads take the batches of all models in turn.
        self._engine_threads = EngineThreads(self.num_calls)
        self.metrics.engine_calls.set(self.num_calls)
        self._tokenizer_threads = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self.pipelines = {bundle.name: self._load(bundle) for bundle in bundles}
        self.models = {name: ServedModel([pipeline], self.metrics) for name, pipeline in self.pipelines.items()}
        for combination in combinations:
            parts = [self.pipelines[part] for part in combination.parts]
            self.models[combination.name] = ServedModel(parts, self.metrics, combination)
        for model in self.models.values():
            precisions = dict.fromkeys(part.model.bundle.scoring.precision for part in model.parts)
            labels = (model.name, model.identity.fingerprint, "+".join(precisions), settings.runtime)
            self.metrics.model_info.labels(*labels).set(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._checked: asyncio.Task[None] | None = None

    def _load(self, bundle: Bundle) -> Pipeline:
        settings = self.settings
        engine, *shares = open_engines(
            bundle,
            runtime=settings.runtime,
            device=settings.computes_on,
            num_threads=self.num_threads,
            num_calls=self.num_calls,
        )
        given = settings.prefix_cache_bytes
        prefixes = (
            PrefixCache(engine.prefix_cache_bytes if given is None else given) if settings.share_prefixes else None
        )
        model = Model(bundle, engine, prefixes, shares)
        scheduler = Scheduler(model, self.settings, self.metrics, self._engine_threads, self.clock)
        return Pipeline(
            model, scheduler, self.metrics, self._tokenizer_threads, self.clock, self.settings.max_along_tokens
        )

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

    def model(self, name: str | None) -> ServedModel:
        """What a request names, or the only one that there is.

        Raises:
            UnknownModel: there is none of that name.
            InvalidRequest: there are several, bundles and combinations together, and none is named.
        """
        if name is None:
            if len(self.models) > 1:
                raise InvalidRequest(
                    f"model: not given, and several are loaded; choose one of {', '.join(self.models)}"
                )
            return next(iter(self.models.values()))
        if name not in self.models:
            raise UnknownModel(f'model "{name}" is not loaded; here: {", ".join(self.models)}')
        return self.models[name]

    def start(self) -> None:
        """Begin to take batches, and check the golden texts; must be called in the event loop."""
        log(
            "starting",
            models=list(self.models),
            runtime=self.settings.runtime,
            num_threads=self.num_threads,
            num_calls=self.num_calls,
        )
        self._checked = self._spawn(self._check_parity())
        self._spawn(self._watch_engine())

    async def wait_until_checked(self) -> None:
        """Wait until the golden texts were scored; `not_ready` says what came of it. Call `start` before."""
        assert self._checked is not None
        await asyncio.wait([self._checked])

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
        self._engine_threads.stop()
        self._tokenizer_threads.shutdown(cancel_futures=True)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is computed any more; after `stop`, a call of the engine may still run to its end."""
        return self._engine_threads.has_ended

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)
        return task

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
        while (busy_s := self._engine_threads.busy_s) <= timeout_s:  # noqa: ASYNC110  a call that hangs tells nobody
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
                self.metrics.parity_ok.labels(name).set(0)
                wrong.append(f'model "{name}": its golden texts cannot be scored: {error}')
                continue
            self.metrics.parity_ok.labels(name).set(report.ok)
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
            "num_threads": self.num_threads,
            "engine_calls": self.num_calls,
            "limits": {name: getattr(self.settings, name) for name in _LIMITS},
            "models": [self._model_info(model) for model in self.models.values()],
        }

    def _model_info(self, model: ServedModel) -> dict[str, Any]:
        """What is known of a bundle, or of what a combination is made."""
        about: dict[str, Any] = {
            **asdict(model.identity),
            "runtime": self.settings.runtime,
            "device": self.settings.computes_on,
        }
        if model.combination is not None:
            about["formula"] = model.combination.formula
            about["parts"] = {part.model.identity.name: part.model.identity.fingerprint for part in model.parts}
            return about
        about["manifest"] = model.parts[0].model.bundle.manifest.model_dump(mode="json")
        report = self.parity.get(model.name)
        about["parity"] = report and self._parity_info(model.name) | {"texts": _worst_texts(report)}
        return about


def _worst_texts(report: ParityReport) -> list[dict[str, Any]]:
    """The golden texts as `GET /info` shows them, worst first, without the texts."""
    return [
        {
            "index": row.index,
            "num_tokens": row.num_tokens,
            "reference": row.reference,
            "served": row.alone,
            "difference": _finite(row.difference),
            "allowed": row.allowed,
            "problem": row.problem,
        }
        for row in report.worst_first[:_MAX_TEXTS_SHOWN]
    ]


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
