"""The lines of an input file: JSONL, gzipped or not, standard input, or the rows of a parquet file.

Knows nothing of items.
"""

import contextlib
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from plaudit_client.errors import InvalidArgument

STDIN = "-"


def read_lines(name: str, columns: frozenset[str] | None = None) -> Iterator[bytes]:
    """The lines of a file as they are read; of a parquet file each row as a JSON object.

    Args:
        name: Of the file; `-` is standard input.
        columns: What is read of a parquet file; null counts as not there. None: all of it, and what JSON has no form
            for becomes a text.

    Raises:
        InvalidArgument: It cannot be read.
    """
    try:
        if name.endswith(".parquet"):
            yield from _read_rows(name, columns)
        else:
            with _open(name) as file:
                yield from file
    except ModuleNotFoundError as error:
        raise InvalidArgument(f"{name}: parquet needs pyarrow: pip install pyarrow; or give JSONL") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidArgument(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _open(name: str) -> contextlib.AbstractContextManager[IO[bytes] | gzip.GzipFile]:
    if name == STDIN:
        return contextlib.nullcontext(sys.stdin.buffer)
    return gzip.open(name, "rb") if name.endswith(".gz") else Path(name).open("rb")


def _read_rows(name: str, columns: frozenset[str] | None) -> Iterator[bytes]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(name) as file:
            known = [column for column in file.schema_arrow.names if columns is None or column in columns]
            for batch in file.iter_batches(columns=known):
                for row in batch.to_pylist():
                    given = {column: value for column, value in row.items() if value is not None}
                    yield json.dumps(given, default=str if columns is None else None).encode() + b"\n"
    except (ArrowException, TypeError) as error:  # TypeError: a column of what JSON has no form for
        raise InvalidArgument(f"{name}: cannot be read: {error}") from error
