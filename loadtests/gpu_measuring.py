"""What the parts of gpu_check.py share: their setting, the file of their figures, random sequences, times."""

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import LLAMA_SHAPES

TINY_DECODERS = ("llama", "qwen3", "gemma2")
TINY_ENCODERS = ("bert", "deberta-v2", "modernbert")
MODELS = (*TINY_DECODERS, *TINY_ENCODERS, "minilm")
PRECISIONS = ("fp32", "fp16", "bf16")
SIZES = ("tiny", *LLAMA_SHAPES)
TRANSFORMERS = "transformers"


_LEAST_ROUNDS, _MOST_ROUNDS = 3, 100


@dataclass(frozen=True)
class Setting:
    """What all parts have in common.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        size: Of the Llama whose speed and memory are measured.
        precision: Of that Llama, where only one is measured.
        seconds: How long one figure is measured.
        models: Of the parity.
        work: Folder of checkpoints and bundles.
    """

    device: str
    size: str
    precision: str
    seconds: float
    models: Sequence[str]
    work: str

    @property
    def measured(self) -> str:
        """The model whose speed and memory are measured."""
        return "llama" if self.size == "tiny" else f"llama-{self.size}"

    def checkpoint(self, model: str) -> Path:
        """Where its checkpoint is."""
        return Path(self.work) / "checkpoints" / model

    def bundle(self, model: str, precision: str) -> Path:
        """Where its bundle is, or will be."""
        return Path(self.work) / "bundles" / f"{model}-{precision}"

    def made_bundle(self, model: str, precision: str) -> Path:
        """Where its bundle is.

        Raises:
            FileNotFoundError: it was not made.
        """
        path = self.bundle(model, precision)
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; make it with --only bundles")
        return path


class Figures:
    """What a part has measured, in a file that holds each figure at once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._figures: dict[str, Any] = {}

    def put(self, **figures: Any) -> None:
        """Add figures; a list of mappings is a table. JSON has no infinity and no NaN: they are put down as words."""
        for name, value in figures.items():
            is_number = not isinstance(value, float) or math.isfinite(value)
            self._figures[name] = value if is_number else str(value)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._figures, allow_nan=False), encoding="utf-8")
        part.replace(self._path)


def random_ids(source: random.Random, length: int, vocab_size: int) -> list[int]:
    """Ids from the middle of a vocabulary: special tokens stand at its ends."""
    return source.choices(range(vocab_size // 10, vocab_size * 9 // 10), k=length)


def sequence(ids: list[int]) -> Any:
    """What an engine takes."""
    from plaudit_service.text.tokenization import TokenizedText

    return TokenizedText(np.array(ids), None, len(ids), truncated=False)


def all_scored(scores: Sequence[float]) -> None:
    """Stop the measurement where a score is missing."""
    assert np.isfinite(scores).all(), "a score is missing"


def median_s(run: Callable[[], object], seconds: float) -> float:
    """Median time of a call that waits for its result, after two that are not counted."""
    for _ in range(2):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_ROUNDS or (len(times) < _MOST_ROUNDS and time.perf_counter() < end):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
