"""Keeps what torch and transformers say to their developers off the user's terminal."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers

NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines under ERROR or warnings from libraries inside; as before afterwards."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in NOISY_LOGGERS}
    had_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    for logger, level in loggers.items():
        if level != logging.ERROR:  # inside of itself there is nothing to do, and a level clears caches of all loggers
            logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            if level != logger.level:
                logger.setLevel(level)
        if had_bars:
            transformers.utils.logging.enable_progress_bar()
