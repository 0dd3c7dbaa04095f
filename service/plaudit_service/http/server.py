"""The server process: binds, listens, drains on a signal. Alone in knowing uvicorn, with `connections`."""

import errno
import math
import signal
import socket
import ssl
from types import FrameType

import uvicorn

from plaudit_service.errors import SettingsError
from plaudit_service.http.asgi import App
from plaudit_service.http.connections import connection_class
from plaudit_service.logs import log
from plaudit_service.serving.service import Service


def bind(host: str, port: int) -> socket.socket:
    """Reserve the port without listening: until the bundles are loaded, connections are refused, not kept waiting.

    Raises:
        SettingsError: the port is taken or the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol has to be named: asyncio turns Nagle's algorithm off only where it is, and with it on, an answer on a
    # kept connection waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, TypeError) as error:  # a number or a name that no socket takes
        listener.close()
        raise _cannot_bind(host, port, error) from error
    return listener


def run(app: App, service: Service, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is open.

    Raises:
        SettingsError: another process began to listen on the port since it was bound.
    """
    settings = service.settings
    config = uvicorn.Config(
        app,
        http=connection_class(settings),
        loop="uvloop",
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # it is given to call_later
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    try:
        _Server(config, service, listener).run(sockets=[listener])
    except OSError as error:
        raise _cannot_bind(settings.host, settings.port, error) from error


class _Server(uvicorn.Server):
    """Exits 0 after SIGTERM (uvicorn would raise the signal again) and drains first."""

    def __init__(self, config: uvicorn.Config, service: Service, listener: socket.socket) -> None:
        super().__init__(config)
        self._service = service
        host, port = listener.getsockname()[:2]
        scheme = "http" if config.ssl_context_factory is None else "https"
        self._url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        log("draining", signal=signal.Signals(sig).name)
        self._service.drain()
        self.force_exit = self.should_exit  # a second signal does not wait for open requests
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log("listening", url=self._url)


def _cannot_bind(host: str, port: int, error: Exception) -> SettingsError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return SettingsError(f"port {port} of {host} is in use; choose another with --port")
    return SettingsError(f"--host {host} --port {port}: cannot be bound ({error})")
