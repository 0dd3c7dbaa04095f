"""A clock that nobody waits for, and real sockets in front of any mock transport."""

import asyncio
import contextlib
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plaudit_client.retry import Timing
from plaudit_client.transport import HttpRequest


class FakeTime:
    """Time that passes only by sleeping; chance is always one half."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []
        self.timing = Timing(clock=lambda: self.now, sleep=self._sleep, random=lambda: 0.5)

    async def _sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)  # others run, as in any sleep


@pytest.fixture
def fake_time():
    return FakeTime()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PLAUDIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def serve():
    """A function that puts a fake transport behind a real socket and returns its URL."""
    with contextlib.ExitStack() as stack:
        yield lambda transport: stack.enter_context(_serve(transport))


@contextlib.contextmanager
def _serve(transport):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = HttpRequest(self.command, f"http://fake{self.path}", dict(self.headers.items()), content)
            response = transport.answer(request)
            self.send_response(response.status)
            for key, value in response.headers.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        do_GET = do_POST = _answer  # noqa: N815  names that http.server looks for

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            if not isinstance(sys.exception(), ConnectionError):  # clients of these tests may leave early
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
