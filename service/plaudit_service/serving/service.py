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
from plaudit_service.engine.device import Device, ThreadsDevice
from plaudit_service.engine.engine_threads import EngineThreads
from plaudit_service.engine.engines import open_engines
from plaudit_service.engine.machine import num_cores
from plaudit_service.engine.model import Model, RewardModel
from plaudit_service.engine.prefixes import PrefixCache
from plaudit_service.engine.remote.fleet import Fleet
from plaudit_service.engine.remote.opening import engine_urls, open_fleet
from plaudit_service.errors import InvalidRequest, Unavailable, UnknownModel
from plaudit_service.logs import log
from plaudit_service.metrics import Metrics
from plaudit_service.queueing.scheduler import Scheduler
from plaudit_service.serving.checks import Checks, parity_info, worst_texts
from plaudit_service.serving.combining import parse_combinations
from plaudit_service.serving.fleet_watch import FleetWatch
from plaudit_service.serving.pipeline import Pipeline
from plaudit_service.serving.served_model import ServedModel
from plaudit_service.serving.watch import ThreadsWatch, Watch
from plaudit_service.settings import Settings

TOKENIZER_THREADS = 2

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
        self._checks = Checks(self.metrics)
        self._failed: str | None = None
        self._tokenizer_threads = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self.pipelines: dict[str, Pipeline] = {}
        self._watches: list[Watch] = []
        self._fleets: dict[str, Fleet] = {}
        if settings.runtime == "vllm":
            self._ask_engines(bundles)
        else:
            self._load_graphs(bundles)
        self.metrics.engine_calls.set(self.num_calls)
        self.models = {name: ServedModel([pipeline], self.metrics) for name, pipeline in self.pipelines.items()}
        for combination in combinations:
            parts = [self.pipelines[part] for part in combination.parts]
            self.models[combination.name] = ServedModel(parts, self.metrics, combination)
        for model in self.models.values():
            precisions = dict.fromkeys(part.model.bundle.scoring.precision for part in model.parts)
            labels = (model.name, model.identity.fingerprint, "+".join(precisions), settings.runtime)
            self.metrics.model_info.labels(*labels).set(1)
        self._tasks: list[asyncio.Task[None]] = []

    def _load_graphs(self, bundles: Sequence[Bundle]) -> None:
        """Have this process compute: the threads of one device take the batches of all models in turn."""
        settings = self.settings
        self.num_calls = settings.engine_calls or default_calls(bundles, settings.computes_on, self.num_threads)
        threads = EngineThreads(self.num_calls)
        for bundle in bundles:
            model = self._open_model(bundle)
            self.pipelines[bundle.name] = self._pipeline(model, ThreadsDevice(model, threads, self.clock))
        pipelines = list(self.pipelines.values())
        watch = ThreadsWatch(pipelines, threads, self._checks, settings.engine_timeout_s, self._show_ready)
        self._watches.append(watch)

    def _open_model(self, bundle: Bundle) -> Model:
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
        return Model(bundle, engine, prefixes, shares)

    def _ask_engines(self, bundles: Sequence[Bundle]) -> None:
        """Have servers compute: each model has its own."""
        urls = engine_urls(self.settings, [bundle.name for bundle in bundles])
        for bundle in bundles:
            fleet = open_fleet(bundle, urls[bundle.name], self.settings, self.clock)
            self._fleets[bundle.name] = fleet
            pipeline = self.pipelines[bundle.name] = self._pipeline(fleet.model, fleet)
            self._watches.append(
                FleetWatch(pipeline, fleet, self._checks, self.settings, self.metrics, self._show_ready)
            )
        self.num_calls = sum(fleet.num_calls for fleet in self._fleets.values())

    def _pipeline(self, model: RewardModel, device: Device) -> Pipeline:
        scheduler = Scheduler(model, self.settings, self.metrics, device, self.clock)
        return Pipeline(
            model, scheduler, self.metrics, self._tokenizer_threads, self.clock, self.settings.max_along_tokens
        )

    @property
    def not_ready(self) -> str | None:
        """Why `/score` is refused; None when it is answered."""
        return self._failed or "; ".join(each.not_ready for each in self._watches if each.not_ready) or None

    @property
    def alive(self) -> bool:
        """False once only a new process can help: a call of the engine in this one hangs."""
        return all(watch.alive for watch in self._watches)

    def require_ready(self) -> None:
        """Refuse to score before the golden texts were right, and after draining began.

        Raises:
            Unavailable: 503.
        """
        if (not_ready := self.not_ready) is not None:
            raise Unavailable(f"{not_ready}; ask /readyz")

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
        for watch in self._watches:
            self._spawn(watch.run())

    async def wait_until_checked(self) -> None:
        """Wait until the golden texts were scored; `not_ready` says what came of it. Call `start` before."""
        for watch in self._watches:
            await watch.checked.wait()

    def drain(self) -> None:
        """Stop to be ready, for good; what was admitted is finished."""
        self._failed = "the service is shutting down"
        self._show_ready()

    async def stop(self) -> None:
        """End the tasks and threads."""
        self.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for watch in self._watches:
            await watch.close()
        self._tokenizer_threads.shutdown(cancel_futures=True)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is computed any more; after `stop`, a call of the engine may still run to its end."""
        return all(watch.has_ended for watch in self._watches)

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)
        return task

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed = self._failed or f"a background task failed ({type(error).__name__})"
            self._show_ready()
            log("task_failed", level=logging.ERROR, error=error)

    def _show_ready(self) -> None:
        self.metrics.ready.set(self.not_ready is None)

    def info(self) -> dict[str, Any]:
        """The answer of `GET /info`."""
        return {
            "version": version("plaudit"),
            "ready": self.not_ready is None,
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
        report = self._checks.reports.get(model.name)
        about["parity"] = report and parity_info(report) | {"texts": worst_texts(report)}
        if (fleet := self._fleets.get(model.name)) is not None:
            about["engines"] = fleet.info()
            about["device"] = None
        return about
