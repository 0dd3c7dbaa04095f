"""Checkpoints and graphs that several export tests look at, made once."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from plaudit_export.exporter import export_checkpoint
from plaudit_export.finish import Exported
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint


@pytest.fixture(scope="session")
def causal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_checkpoint(tmp_path_factory.mktemp("causal") / "tiny-llama")


@pytest.fixture(scope="session")
def encoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_checkpoint(tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="session")
def causal_bundle(causal_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_checkpoint(str(causal_checkpoint), tmp_path_factory.mktemp("bundles") / "causal")


@pytest.fixture(scope="session")
def encoder_bundle(encoder_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_checkpoint(str(encoder_checkpoint), tmp_path_factory.mktemp("bundles") / "encoder")


@dataclass
class Command:
    """A finished `plaudit-export checkpoint`, and where its bundle is."""

    done: subprocess.CompletedProcess
    bundle: Path


@pytest.fixture(scope="session")
def causal_again(causal_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The causal checkpoint exported by the command, in another process with another hash seed."""
    bundle = tmp_path_factory.mktemp("again") / "bundle"
    command = [Path(sys.executable).with_name("plaudit-export"), "checkpoint", causal_checkpoint, bundle]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    return Command(subprocess.run(command, capture_output=True, text=True, env=environment), bundle)
