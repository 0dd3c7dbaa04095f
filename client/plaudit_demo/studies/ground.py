"""What every study stands on: for each seed the demo's SFT policy, prompts, RM and bundle, made once and kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TextIO

from plaudit_client import RewardClient
from plaudit_demo.output import prepare_output, read_json, write_json
from plaudit_demo.progress import Progress
from plaudit_demo.run import BUNDLE, make_ground
from plaudit_demo.service import serving
from plaudit_demo.settings import DemoSettings

_NUM_STAGES = 5
_DONE = "ground.json"
_SCORE_TIMEOUT_S = 60.0


def ensure_ground(settings: DemoSettings, directory: Path, stream: TextIO) -> None:
    """Make the models of a seed, unless they are there with the same settings.

    Raises:
        DemoError: a stage failed.
    """
    wanted = asdict(settings)
    if read_json(directory / _DONE).get("settings") != wanted:
        progress = Progress(stream, _NUM_STAGES)
        ground = make_ground(settings, prepare_output(directory), progress, count(settings.seed * 1000))
        figures = {name: value for name, value in asdict(ground).items() if name != "held_out_prompts"}
        write_json(directory / _DONE, {"settings": wanted, **figures})


@contextmanager
def serving_ground(settings: DemoSettings, directory: Path) -> Iterator[tuple[str, RewardClient]]:
    """Serve the RM of a seed for as long as the block runs; yields the URL and a client."""
    with serving(
        directory / BUNDLE,
        directory / "plaudit-serve.log",
        num_threads=settings.service_threads,
        timeout_s=_SCORE_TIMEOUT_S,
        on_poll=lambda: None,
    ) as service:
        yield service
