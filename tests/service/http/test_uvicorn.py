"""The internals of uvicorn that `connections` and `server` build on.

Where one of these tests fails after an upgrade, read uvicorn's `protocols/http/httptools_impl.py` and `server.py`, mend
ours, and only then move the upper bound in pyproject.toml.
"""

import asyncio
import inspect
import re
import signal
import ssl
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest
import uvicorn
from packaging.requirements import Requirement
from packaging.version import Version
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from plaudit_service.http import server
from plaudit_service.http.connections import Connection, connection_class
from plaudit_service.settings import Settings

ROOT = Path(__file__).parents[3]
CHANGED = f"uvicorn {uvicorn.__version__} changed what our HTTP edge builds on; {__file__} says what to do"

# What `Connection` overrides, each with what it is called with.
CALLBACKS = {
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "data_received": ["data"],
    "on_message_begin": [],
    "on_headers_complete": [],
    "on_message_complete": [],
    "send_400_response": ["msg"],
    "timeout_keep_alive_handler": [],
}
# What `Connection` reads of the protocol.
ATTRIBUTES = {"connections", "cycle", "flow", "headers", "loop", "transport", "url"}

# The same of `_Server`.
SERVER_CALLBACKS = {"handle_exit": ["sig", "frame"], "startup": ["sockets"]}
SERVER_ATTRIBUTES = {"force_exit", "should_exit"}

# What `server.run` sets.
OPTIONS = """
    app http loop ws interface lifespan log_config access_log server_header proxy_headers ssl_context_factory
    timeout_keep_alive timeout_graceful_shutdown
"""

HEAD = b"POST /score?a=1 HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n"
REQUEST = HEAD + b"{}"


class FakeLoop:
    """Starts tasks, and remembers timers instead of waiting for them."""

    def __init__(self):
        self.create_task = asyncio.get_running_loop().create_task
        self.timers = []

    def call_later(self, delay, callback):
        timer = Mock(delay=delay, callback=callback)
        self.timers.append(timer)
        return timer


class FakeTransport(asyncio.Transport):
    """Takes what is written; closes at once."""

    def __init__(self):
        super().__init__()
        self.written = b""
        self._is_closing = False

    def write(self, data):
        self.written += data

    def close(self):
        self._is_closing = True

    def is_closing(self):
        return self._is_closing

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Recorded(HttpToolsProtocol):
    """uvicorn's own connection, and the callbacks that came, each with what it found."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.calls = []

    def on_message_begin(self):
        super().on_message_begin()
        self.calls.append("begin")

    def on_headers_complete(self):
        self.calls.append(("headers", self.url, list(self.headers)))
        if b"/refused" in self.url:
            raise ValueError
        super().on_headers_complete()

    def on_message_complete(self):
        super().on_message_complete()
        self.calls.append("complete")

    def send_400_response(self, msg):
        self.calls.append("400")


class Application:
    """Answers every request once it is allowed to."""

    def __init__(self):
        self._may_answer = asyncio.Event()

    async def __call__(self, scope, receive, send):
        await self._may_answer.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def answer(self, connection):
        """Answer what was asked on a connection."""
        self._may_answer.set()
        while connection.tasks:
            await asyncio.gather(*connection.tasks)


def connected(app=None, kind=Recorded, **options):
    """A connection that was just made."""
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, **options)
    connection = kind(config, ServerState(), {})
    connection.connection_made(FakeTransport())
    return connection


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def overridden(ours, theirs):
    return {name for name in vars(ours).keys() & set(dir(theirs)) if not name.startswith("__")}


def attributes(ours):
    """Public and private names that a class of ours reads or sets on itself."""
    names = set(re.findall(r"self\.(\w+)", inspect.getsource(ours)))
    private = {name for name in names if name.startswith("_")}
    return names - private, private


def test_uvicorn_is_bounded_before_the_next_minor_version_which_may_change_its_internals():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (allowed,) = [wanted.specifier for wanted in map(Requirement, extras["serving-base"]) if wanted.name == "uvicorn"]
    tested = Version(re.search(r"^uvicorn==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1])
    assert tested in allowed
    assert Version(uvicorn.__version__) in allowed
    assert Version(f"{tested.major}.{tested.minor + 1}") not in allowed
    assert Version(f"{tested.major + 1}") not in allowed


@pytest.mark.parametrize("name", CALLBACKS)
def test_uvicorn_calls_what_a_connection_overrides_with_the_same_arguments(name):
    assert hasattr(HttpToolsProtocol, name), CHANGED
    assert parameters(getattr(HttpToolsProtocol, name)) == CALLBACKS[name], CHANGED
    assert parameters(getattr(Connection, name)) == CALLBACKS[name]


@pytest.mark.parametrize("name", SERVER_CALLBACKS)
def test_uvicorn_calls_what_our_server_overrides_with_the_same_arguments(name):
    assert hasattr(uvicorn.Server, name), CHANGED
    assert parameters(getattr(uvicorn.Server, name)) == SERVER_CALLBACKS[name], CHANGED
    assert parameters(getattr(server._Server, name)) == SERVER_CALLBACKS[name]


def test_nothing_else_of_uvicorn_is_overridden_or_read():
    public, _ = attributes(Connection)
    limits = set(Connection.__annotations__)
    assert overridden(Connection, HttpToolsProtocol) == set(CALLBACKS)
    assert public - limits - set(CALLBACKS) == ATTRIBUTES
    public, _ = attributes(server._Server)
    assert overridden(server._Server, uvicorn.Server) == set(SERVER_CALLBACKS)
    assert public - set(SERVER_CALLBACKS) == SERVER_ATTRIBUTES


def test_the_attributes_that_we_add_are_none_of_uvicorns():
    async def scenario():
        theirs = {*dir(connected(kind=HttpToolsProtocol)), *dir(uvicorn.Server(uvicorn.Config(None)))}
        for ours in (Connection, server._Server):
            _, private = attributes(ours)
            assert not private & theirs, CHANGED
        assert not set(Connection.__annotations__) & theirs, CHANGED

    asyncio.run(scenario())


def test_the_loop_the_transport_and_the_open_connections_are_there_from_the_first_moment_to_the_last():
    async def scenario():
        connection = connected()
        assert connection.loop is asyncio.get_running_loop(), CHANGED
        assert isinstance(connection.transport, FakeTransport), CHANGED
        assert connection.connections == {connection}, CHANGED
        assert connection.cycle is None, CHANGED
        assert connection.flow.read_paused is False, CHANGED
        connection.connection_lost(None)
        assert connection.connections == set(), CHANGED

    asyncio.run(scenario())


def test_the_parts_of_a_request_are_announced_in_order_and_its_headers_are_whole_at_their_end():
    async def scenario():
        app = Application()
        connection = connected(app)
        for place in range(len(REQUEST)):
            connection.data_received(REQUEST[place : place + 1])
        headers = [(b"host", b"here"), (b"content-length", b"2")]
        assert connection.calls == ["begin", ("headers", b"/score?a=1", headers), "complete"], CHANGED
        await app.answer(connection)

    asyncio.run(scenario())


def test_a_cycle_lasts_from_the_end_of_the_headers_until_the_answer_is_written():
    async def scenario():
        app = Application()
        connection = connected(app)
        connection.data_received(HEAD)
        assert connection.cycle.response_complete is False, CHANGED
        connection.data_received(b"{}")
        await app.answer(connection)
        assert connection.cycle.response_complete is True, CHANGED
        assert connection.transport.written.startswith(STATUS_LINE[204]), CHANGED

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(REQUEST + REQUEST, id="a second request"),
        pytest.param(HEAD.replace(b" 2", b" 99999") + b" " * 70_000, id="a body that nobody reads"),
    ],
)
def test_reading_is_paused_while_the_client_waits_for_us(data):
    async def scenario():
        app = Application()
        connection = connected(app)
        connection.data_received(data)
        assert connection.flow.read_paused is True, CHANGED
        await app.answer(connection)
        assert connection.flow.read_paused is False, CHANGED

    asyncio.run(scenario())


@pytest.mark.parametrize("data", [b"no HTTP\r\n\r\n", HEAD.replace(b"/score", b"/refused")], ids=["strange", "refused"])
def test_what_is_no_request_and_what_a_callback_refuses_is_answered_by_send_400_response(data):
    async def scenario():
        connection = connected()
        connection.data_received(data)
        assert connection.calls[-1] == "400", CHANGED
        assert connection.cycle is None, CHANGED

    asyncio.run(scenario())


def test_an_idle_connection_is_cut_by_its_handler_and_any_data_end_that_timer():
    async def scenario():
        app = Application()
        connection = connected(app, timeout_keep_alive=75)
        connection.loop = FakeLoop()
        connection.data_received(REQUEST)
        await app.answer(connection)
        (timer,) = connection.loop.timers
        assert (timer.delay, timer.callback) == (75, connection.timeout_keep_alive_handler), CHANGED
        connection.data_received(b"\r\n")
        timer.cancel.assert_called_once_with()

    asyncio.run(scenario())


def test_there_is_a_status_line_for_each_refusal():
    assert STATUS_LINE[400] == b"HTTP/1.1 400 Bad Request\r\n", CHANGED
    assert STATUS_LINE[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n", CHANGED


@pytest.mark.parametrize("option", OPTIONS.split())
def test_uvicorn_has_every_option_that_we_set(option):
    assert option in parameters(uvicorn.Config.__init__), CHANGED
    assert option == "app" or f"{option}=" in inspect.getsource(server.run)


def test_uvicorn_takes_our_connection_class_and_our_tls_context():
    context, kind = ssl.create_default_context(), connection_class(Settings())
    config = uvicorn.Config(None, http=kind, log_config=None, ssl_context_factory=lambda _config, _default: context)
    config.load()
    assert config.http_protocol_class is kind, CHANGED
    assert config.ssl is context, CHANGED
    assert config.ssl_context_factory is not None, CHANGED
    assert parameters(uvicorn.Server.run) == ["sockets"], CHANGED


def test_a_signal_reaches_our_handler_and_is_not_raised_again(monkeypatch):
    class Handled(uvicorn.Server):
        def handle_exit(self, sig, frame):
            handled.append(sig)

    handled, raised = [], []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    with Handled(uvicorn.Config(None, log_config=None)).capture_signals():
        for sig in (signal.SIGTERM, signal.SIGINT):
            assert signal.getsignal(sig).__name__ == "handle_exit", CHANGED
            signal.getsignal(sig)(sig, None)
    assert (handled, raised) == ([signal.SIGTERM, signal.SIGINT], []), CHANGED


def test_a_server_ends_when_it_should_exit():
    async def scenario():
        stopping = uvicorn.Server(uvicorn.Config(None, log_config=None))
        assert (stopping.should_exit, stopping.force_exit) == (False, False), CHANGED
        assert await stopping.on_tick(0) is False, CHANGED
        stopping.should_exit = True
        assert await stopping.on_tick(0) is True, CHANGED

    asyncio.run(scenario())
