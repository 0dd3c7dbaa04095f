"""`plaudit-serve`: bind, verify the bundles, serve until SIGTERM or SIGINT."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from plaudit_service.settings import Settings


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
    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="BUNDLE",
        help="bundle directory made by plaudit-export, or its hub id org/name[@revision]",
    )
    settings.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        return _serve(parsed.bundles, settings.from_arguments(parsed))
    except (SettingsError, BundleError) as error:
        return _fail(2, str(error))
    except ServiceError as error:
        return _fail(1, str(error))


def _serve(paths: Sequence[str], settings: "Settings") -> int:
    from plaudit_service import hub, logs, server
    from plaudit_service.app import build_app
    from plaudit_service.bundle import load_bundle
    from plaudit_service.service import Service

    api_keys = settings.api_keys()
    settings.check_binding(api_keys)
    tls = settings.tls()
    listener = server.bind(settings.host, settings.port)
    service = Service([load_bundle(hub.local_directory(path)) for path in paths], settings)
    logs.configure()
    server.run(build_app(service, api_keys), service, listener, tls)
    return 0


def _fail(code: int, message: str) -> int:
    print(f"plaudit-serve: error: {message}", file=sys.stderr)
    return code
