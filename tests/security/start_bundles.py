"""Starts `plaudit-serve` on many bundles: one line of JSON for each path on standard input.

Each start is a fork of this process, which has imported everything: its command runs as a user's does, up to where the
golden texts are checked, but opens no socket for requests. A child may use so much memory and so much time.
"""

import asyncio
import json
import os
import resource
import select
import signal
import sys
import tempfile
import traceback

from plaudit_service import cli
from plaudit_service.engine import runtimes
from plaudit_service.http import server
from plaudit_service.http.app import build_app
from plaudit_service.serving import service

MAX_BYTES = 8 << 30  # of addresses; most of them are libraries' and thread stacks'
MAX_SECONDS = 60.0

# The command imports them late, and every child would do so for itself.
IMPORTED = (runtimes, service, build_app)


def main() -> None:
    """Start each bundle."""
    server.run = check_golden_texts
    for line in sys.stdin:
        sys.stdout.write(json.dumps(start(line.rstrip("\n"))) + "\n")
        sys.stdout.flush()


def check_golden_texts(app, loaded, listener, tls) -> None:
    """Stands for serving: start, check, stop."""

    async def check() -> None:
        first = loaded.not_ready
        loaded.start()
        while loaded.not_ready == first:  # noqa: ASYNC110  the service tells nobody but by this
            await asyncio.sleep(0.001)
        await loaded.stop()

    listener.close()
    asyncio.run(check())


def start(path: str) -> dict[str, object]:
    """Start one bundle: exit code (negative: a signal; -9: too slow), what it said, its largest memory in bytes."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = 1
            try:
                code = cli.main([path, "--port", "0", "--num-threads", "1"])
            except BaseException:  # noqa: BLE001  a start that raises is what the test looks for
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        watched = os.pidfd_open(child)
        if not select.select([watched], [], [], MAX_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(watched)
        _, status, usage = os.wait4(child, 0)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    return {"code": os.waitstatus_to_exitcode(status), "said": text, "bytes": usage.ru_maxrss * 1024}


if __name__ == "__main__":
    main()
