"""`plaudit-serve`: bind, verify the bundles, serve until a signal. `plaudit-fetch`: bring a bundle and verify it."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from plaudit_service.command_line import Parser, interruptible, run

if TYPE_CHECKING:
    from plaudit_service.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 stopped by a signal, 1 failed, 2 what the user gave is wrong."""
    return run("plaudit-serve", lambda: _main(arguments), extra="service")


def fetch_main(arguments: Sequence[str] | None = None) -> int:
    """Run `plaudit-fetch`; returns 0: verified and in place, 2: what the user gave is wrong, 130: interrupted."""
    return run("plaudit-fetch", lambda: _fetch_main(arguments), extra="service")


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """Before the server takes over the signal, nothing is open that would have to be finished.

    No exception: it could be raised inside of C code that imports a package.
    """
    os._exit(0)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Where a download or an export is under way, which has to be cleared away."""
    raise SystemExit(0)


def _main(arguments: Sequence[str] | None) -> int:
    signal.signal(signal.SIGTERM, _stop)
    from plaudit_service import settings

    parser = Parser(
        prog="plaudit-serve",
        description="Serve reward models over HTTP, at POST /score. The service is ready once each model gives its "
        "reference scores.",
        epilog="The environment variable PLAUDIT_API_KEYS also holds API keys, separated by commas.",
    )
    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="BUNDLE",
        help="bundle directory made by plaudit-export, or checkpoint directory, or the hub id of either, "
        "org/name[@revision]; a checkpoint is exported at the first start, which needs plaudit-export",
    )
    settings.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    return _serve(parsed.bundles, settings.from_arguments(parsed))


def _serve(paths: Sequence[str], settings: "Settings") -> int:
    from plaudit_service import logs
    from plaudit_service.bundles.bundle import load_bundle
    from plaudit_service.bundles.exporting import bundle_directories
    from plaudit_service.http import server
    from plaudit_service.http.app import build_app
    from plaudit_service.serving.service import Service

    api_keys = settings.api_keys()
    settings.check_binding(api_keys)
    settings.check_engine()
    tls = settings.tls()
    listener = server.bind(settings.host, settings.port)
    with interruptible():
        signal.signal(signal.SIGTERM, _leave)
        directories = bundle_directories(paths, settings.export_options, settings.export_cache)
    service = Service([load_bundle(directory) for directory in directories], settings)
    logs.configure()
    server.run(build_app(service, api_keys), service, listener, tls)
    if (
        not service.has_ended
    ):  # nothing can interrupt the engine's call, and it crashes where the interpreter ends around it
        os._exit(0)
    return 0


def _fetch_main(arguments: Sequence[str] | None) -> int:
    from plaudit_service.bundles.fetch import fetch

    parser = Parser(
        prog="plaudit-fetch",
        description="Copy a bundle to DIRECTORY, verify the hash of every file, and print the bundle's fingerprint. "
        "DIRECTORY is created with all files or not at all. A DIRECTORY that already exists is verified and "
        "not changed.",
        epilog="Environment variables for the hub: HF_ENDPOINT (address), HF_HOME (cache), HF_TOKEN (token).",
    )
    parser.add_argument("source", metavar="SOURCE", help="bundle directory, or its hub id org/name[@revision]")
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="directory to create")
    parser.add_argument(
        "--fingerprint",
        metavar="SHA256",
        help="accept only the bundle with this fingerprint, sha256:... (default: any)",
    )
    parsed = parser.parse_args(arguments)
    with interruptible():
        fingerprint = fetch(parsed.source, parsed.directory, parsed.fingerprint)
    print(fingerprint)
    return 0
