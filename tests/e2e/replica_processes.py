"""Replicas for tests of the client: real `plaudit-serve` processes that can be killed and started again, and a host
name that leads to where a test says."""

import contextlib
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

from plaudit_client.transport import Network
from plaudit_service.testing import running_service


class ReplicaProcess:
    """A service that keeps its port over restarts; use as a context manager."""

    def __init__(self, bundle: Path, *, host: str = "127.0.0.1", port: int = 0):
        self.bundle, self.host, self.port = bundle, host, port
        self.running = contextlib.ExitStack()
        self.service = None
        self.exit_codes = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self.running.close()

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def start(self):
        """Start it on its port and wait until it is ready."""
        flags = ["--host", self.host, "--port", str(self.port), "--allow-unauthenticated", "--num-threads", "1"]
        self.service = self.running.enter_context(running_service(self.bundle, flags=flags))
        self.port = urlsplit(self.service.url).port

    def send(self, number):
        self.service.process.send_signal(number)

    def end(self, number=signal.SIGKILL):
        """Send a signal that ends it, and wait for that."""
        self.send(number)
        self.exit_codes.append(self.service.process.wait(30))
        self.running.close()

    def count_answers(self, status):
        events = self.service.events("request")
        return sum(event["route"] == "/score" and event["status"] == status for event in events)


class WatchedNetwork(Network):
    """The real network; calls a function with the number of each score request before that is sent."""

    def __init__(self, before_request=lambda number: None, *, max_age_s=30.0, **settings):
        super().__init__(max_age_s=max_age_s, **settings)
        self.num_sent = 0
        self._before_request = before_request

    async def send(self, request, address):
        if request.path == "/score":
            self.num_sent += 1
            self._before_request(self.num_sent)
        return await super().send(request, address)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
