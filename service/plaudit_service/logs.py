"""Logs as JSON lines on standard error: sizes, times and outcomes, never a prompt or a completion.

A line that cannot be written (full disk, closed pipe) is lost; the service goes on.
"""

import contextlib
import json
import logging
import os
import sys
import time
from typing import Any

_logger = logging.getLogger("plaudit")


class _JsonLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Unbuffered, so that nothing is left to fail when the process ends.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), _line(record))


def _line(record: logging.LogRecord) -> bytes:
    line: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "event": record.getMessage(),
    }
    line.update(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[0] is not None:
        # The class alone: the message of an exception can quote what a user sent.
        line["exception"] = record.exc_info[0].__name__
    return json.dumps(line).encode() + b"\n"


def configure() -> None:
    """Send our log and uvicorn's to standard error, one JSON object a line."""
    handler = _JsonLines()
    for name, level in (("plaudit", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any) -> None:
    """Write one line: the event and its fields, which must be JSON values."""
    _logger.log(level, event, extra={"fields": fields}, exc_info=error)
