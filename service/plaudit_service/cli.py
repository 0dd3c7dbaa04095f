"""`plaudit-serve`: bind, verify the bundles, serve until SIGTERM or SIGINT."""

import argparse
import errno
import math
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from plaudit_service.service import Service
    from plaudit_service.settings import Settings

_KEEP_ALIVE_S = 75  # longer than a client keeps an idle connection, so that none is closed under a request


class _Parser(argparse.ArgumentParser):
    """Prints an error as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"plaudit-serve: error: {message}; see plaudit-serve --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 stopped by a signal, 1 failed, 2 what the user gave is wrong."""
    try:
        return _main(arguments)
    except ModuleNotFoundError as error:
        return _fail(2, f"{error.name} is not installed; pip install 'plaudit[service]'")
    except KeyboardInterrupt:  # before the server took over the signal
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    from plaudit_service import settings
    from plaudit_service.errors import BundleError, ServiceError, SettingsError

    parser = _Parser(
        prog="plaudit-serve",
        description="Serve reward-model bundles behind POST /score. Not ready until the golden texts got their scores.",
        epilog="Also read: PLAUDIT_API_KEYS, API keys separated by commas.",
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="bundle directory, made by plaudit-export")
    settings.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        return _serve(parsed.bundles, settings.from_arguments(parsed))
    except (SettingsError, BundleError) as error:
        return _fail(2, str(error))
    except ServiceError as error:
        return _fail(1, str(error))


def _serve(paths: Sequence[str], settings: "Settings") -> int:
    from plaudit_service import logs
    from plaudit_service.app import build_app
    from plaudit_service.bundle import load_bundle
    from plaudit_service.service import Service

    api_keys = settings.api_keys()
    settings.check_binding(api_keys)
    listener = _bind(settings.host, settings.port)
    service = Service([load_bundle(path) for path in paths], settings)
    logs.configure()
    try:
        _run(build_app(service, api_keys), service, listener)
    except OSError as error:  # another process began to listen there while the bundles were loaded
        raise _cannot_bind(settings.host, settings.port, error) from error
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Reserve the port without listening: until the bundles are loaded, connections are refused, not kept waiting.

    Raises:
        SettingsError: the port is taken or the address cannot be bound.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _cannot_bind(host, port, error) from error
    return listener


def _cannot_bind(host: str, port: int, error: Exception) -> Exception:
    from plaudit_service.errors import SettingsError

    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return SettingsError(f"port {port} of {host} is in use; choose another with --port")
    return SettingsError(f"--host {host} --port {port}: cannot be bound ({error})")


def _run(app: object, service: "Service", listener: socket.socket) -> None:
    import uvicorn

    from plaudit_service.logs import log

    class Server(uvicorn.Server):
        """Exits 0 after SIGTERM (uvicorn would raise the signal again) and drains first."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            log("draining", signal=signal.Signals(sig).name)
            service.drain()
            self.force_exit = self.should_exit  # a second signal does not wait for open requests
            self.should_exit = True

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            log("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")

    Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]  # uvicorn's ASGI types are closed TypedDicts
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(service.settings.drain_timeout_s),
        )
    ).run(sockets=[listener])


def _fail(code: int, message: str) -> int:
    print(f"plaudit-serve: error: {message}", file=sys.stderr)
    return code
