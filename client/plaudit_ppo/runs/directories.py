"""The directories that a run leaves: each whole or not at all, and tried before the run begins."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plaudit_client.whole_files import whole_directory
from plaudit_ppo.errors import OutputError, one_line


@contextmanager
def left_directory(path: Path) -> Iterator[Path]:
    """Yields an empty directory that takes the name `path` when the block ends well.

    Raises:
        OutputError: what the block writes cannot be written.
    """
    try:
        with whole_directory(path) as directory:
            yield directory
    except Exception as error:  # what writes models and tokenizers has exception types of its own
        raise OutputError(f"{path}: cannot be written ({one_line(error)}); resume the run once it can") from error


@contextmanager
def trial_directory(path: Path) -> Iterator[Path]:
    """Yields a directory beside `path` that is removed when the block ends.

    Raises:
        OutputError: what the block writes cannot be written.
    """
    trial = path.with_name(f".trial-{path.name}")
    shutil.rmtree(trial, ignore_errors=True)
    try:
        trial.mkdir(parents=True)
        yield trial
    except Exception as error:  # see above
        raise OutputError(f"{path}: cannot be written ({one_line(error)})") from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)
