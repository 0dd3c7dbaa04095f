"""The application in this process, with a clock and engines that the test holds."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.http.app import build_app
from plaudit_service.http.asgi import App
from plaudit_service.serving.service import Service
from plaudit_service.settings import Settings

# After this a test has failed; far above what a busy machine takes.
_PATIENCE_S = 120


class HeldEngine:
    """An engine that waits for `gate` before every batch, and remembers the lengths of each."""

    def __init__(self, engine):
        self.name, self.tolerance, self.promises_bits = engine.name, engine.tolerance, True
        self.costs = engine.costs
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.lengths = []
        self._engine = engine

    def run(self, batch, prefix=None):
        self.entered.set()
        assert self.gate.wait(_PATIENCE_S)
        self.lengths.append([len(text.token_ids) for text in batch])
        return self._engine.run(batch, prefix)


@dataclass
class RunningApp:
    """A service that is ready. Its clock stands still, and its engines hold every batch, until the test says so."""

    app: App
    service: Service
    client: httpx2.AsyncClient
    clock: list[float]
    engines: dict[str, HeldEngine]

    @property
    def engine(self):
        """The engine of the only bundle."""
        (engine,) = self.engines.values()
        return engine

    def value(self, name, **labels):
        """A metric, without its prefix."""
        return self.service.metrics.registry.get_sample_value(f"plaudit_{name}", labels)

    def open_gates(self):
        """Let the engines compute."""
        for engine in self.engines.values():
            engine.gate.set()

    def watch_for_room(self):
        """A list of the bundles in whose queues room is asked for, which grows as it happens."""
        asked = []
        for name, pipeline in self.service.pipelines.items():

            async def recorded(*args, name=name, wait=pipeline.scheduler.wait_for_room, **options):
                asked.append(name)
                await wait(*args, **options)

            pipeline.scheduler.wait_for_room = recorded
        return asked

    async def score(self, *texts, **fields):
        """POST /score of texts."""
        headers = fields.pop("headers", {})
        body = {"items": [{"text": text} for text in texts], **fields}
        return await self.client.post("/score", json=body, headers=headers)

    def start_post(self, path, document):
        """POST a document as a client that can leave."""
        return OpenPost(self.app, path, document)

    async def fill_queue(self, model):
        """Leave the engine no room for another batch of a model, where a batch holds one sequence; the answers come."""
        tasks = []
        for text in ("fine", "bad"):
            running = self.value("running_sequences")
            tasks.append(asyncio.create_task(self.score(text, model=model)))
            await until(lambda before=running: self.value("running_sequences") == before + 1)
        return tasks


class OpenPost:
    """A request without an answer yet, whose client can close its connection."""

    def __init__(self, app: App, path: str, document: object) -> None:
        self._left = asyncio.Event()
        self._messages = iter([{"type": "http.request", "body": json.dumps(document).encode()}])
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        self._task = asyncio.create_task(app(scope, self._receive, self._send))

    async def leave(self) -> None:
        """Close the connection, and wait until the service has seen it."""
        self._left.set()
        await self._task

    async def _receive(self):
        for message in self._messages:
            return message
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        raise AssertionError(message)


async def until(condition):
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
            await asyncio.sleep(0.001)


def run_app(scenario: Callable[[RunningApp], Awaitable[None]], *bundles: Path, **settings: object) -> None:
    """Run `scenario(app)` against a service of these bundles with these settings."""
    clock = [100.0]
    service = Service(
        [load_bundle(bundle) for bundle in bundles], Settings(**{"engine_calls": 1, **settings}), clock=lambda: clock[0]
    )

    async def main():
        service.start()
        await service.wait_until_checked()
        assert service.not_ready is None
        engines = {}
        for name, pipeline in service.pipelines.items():
            engines[name] = pipeline.model.engine = HeldEngine(pipeline.model.engine)
        app = build_app(service, service.settings.api_keys({}))
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://plaudit") as client:
            running = RunningApp(app, service, client, clock, engines)
            try:
                await scenario(running)
            finally:
                running.open_gates()
                await service.stop()

    asyncio.run(main())
