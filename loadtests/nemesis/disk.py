"""The disk of a run: a small file system in memory, which can be filled; without root, a plain folder that cannot."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SIZE = "192m"
_PIECE = b"\0" * (1 << 20)


class Disk:
    """A folder; use as a context manager.

    Args:
        folder: Where it is mounted, or what it is.

    Attributes:
        can_be_full: Whether it is a file system of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.can_be_full = False
        self._filler = folder / "filler"

    def __enter__(self) -> "Disk":
        self.folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(self.folder)]
        self.can_be_full = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.can_be_full:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more can be written in the block."""
        try:
            with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
                while True:
                    file.write(_PIECE)
            yield
        finally:
            self._filler.unlink(missing_ok=True)
