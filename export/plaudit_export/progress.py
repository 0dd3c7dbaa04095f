"""Shows on a terminal that a long step without countable parts is still running."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def elapsed(what: str, *, interval_s: float = 1.0) -> Iterator[None]:
    """Show `what` and the time since it began, until the block ends; nothing where stderr is no terminal."""
    bar = tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False, disable=None)
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(interval_s):
            bar.refresh()

    thread = threading.Thread(target=refresh, daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()
        bar.close()
