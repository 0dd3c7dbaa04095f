"""One process at a time in a directory, by a lock that the operating system releases when the process ends.

flock(2) holds an open file, so that kill -9 leaves nothing to tidy up; the file itself stays.
"""

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from plaudit_ppo.errors import ConfigError

_FILE = "run.lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes a run's directory and keeps other runs out of it, until the block or the process ends.

    On a file system without locks it only warns.

    Raises:
        ConfigError: another run is in it; the message says where, as far as known.
        OSError: the directory or the file in it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _FILE).open("a+", encoding="utf-8") as file:
        _lock(file, directory)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _lock(file: TextIO, directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "that run has not written yet where it is"
        raise ConfigError(
            f"output: {directory} is in use by another run ({holder}); wait until that run ends, stop it, or "
            "choose another directory"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{file.name} cannot be locked ({error.strerror}), so a second run in this directory would not be "
            "noticed; do not start one, or choose a directory on another file system",
            stacklevel=4,
        )
