"""Fixtures that every test folder uses: hand-made and exported bundles, and a real service process on a real socket."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from plaudit_service.testing import RunningService, running_service, write_tiny_bundle


def pytest_configure() -> None:
    """Sets what all tests and their processes start from."""
    # A shell starts background jobs with SIGINT ignored, and the processes of the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(ModuleNotFoundError):  # some environments of single tests have no hypothesis
        from hypothesis import HealthCheck, settings

        # What is slow on a busy machine is not wrong.
        settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("untimed")


@pytest.fixture(scope="module", autouse=True)
def own_process() -> Iterator[None]:
    """What a command sets for its whole process is as before when the next file begins: which one that is may vary."""
    environment = dict(os.environ)
    with _quiet_and_threads_given_back():
        yield
    os.environ.clear()
    os.environ.update(environment)


@contextmanager
def _quiet_and_threads_given_back() -> Iterator[None]:
    if "torch" not in sys.modules or "transformers" not in sys.modules:
        yield  # some environments of single tests have neither
        return
    import torch
    from transformers.utils import logging

    num_threads, verbosity, bar = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    torch.set_num_threads(num_threads)
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bar else logging.disable_progress_bar)()


@pytest.fixture
def serve() -> Callable[..., AbstractContextManager[RunningService]]:
    """A context manager that runs `plaudit-serve`: `with serve(bundle, flags=["--open-metrics"]) as service`."""
    return running_service


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes hand-made bundles: `tiny_bundle(name="other", max_tokens=8)`."""

    def write(**options: object) -> Path:
        return write_tiny_bundle(tmp_path / f"bundle-{time.monotonic_ns()}", **options)

    return write


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key files for 127.0.0.1; and the same key under a passphrase."""
    folder = tmp_path_factory.mktemp("tls")
    made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2", "-subj", "/CN=plaudit"]
    files = ["-keyout", "key.pem", "-out", "certificate.pem", "-nodes", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", *made, *files], cwd=folder, check=True, capture_output=True)
    locked = ["-in", "key.pem", "-aes256", "-passout", "pass:secret", "-out", "locked.pem"]
    subprocess.run(["openssl", "ec", *locked], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data of PLAUDIT_DATA, default ../shared/data; skips where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("PLAUDIT_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set PLAUDIT_DATA")
    return path


@pytest.fixture(scope="session")
def causal_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama reward model with a chat template, exported by the README's command."""
    from plaudit_export.cli import main
    from plaudit_export.testing import tiny_causal_checkpoint

    folder = tmp_path_factory.mktemp("causal")
    checkpoint = tiny_causal_checkpoint(folder / "checkpoint")
    assert main(["checkpoint", str(checkpoint), str(folder / "bundle")]) == 0
    return folder / "bundle"


@pytest.fixture(scope="session")
def process_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random process reward model as TRL saves one, two labels for each token, exported."""
    import transformers

    from plaudit_export.checkpoints.rules import Options
    from plaudit_export.exporter import export_checkpoint
    from plaudit_export.quiet import quiet
    from plaudit_export.testing import tiny_causal_checkpoint

    folder = tmp_path_factory.mktemp("process")
    decoder = tiny_causal_checkpoint(folder / "decoder", max_position_embeddings=256)
    with quiet():
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            decoder, num_labels=2, ignore_mismatched_sizes=True
        )
        model.score.weight.data.normal_(std=0.3)
        model.save_pretrained(folder / "prm")
        transformers.AutoTokenizer.from_pretrained(decoder).save_pretrained(folder / "prm")
    return export_checkpoint(str(folder / "prm"), folder / "bundle", Options(name="prm", step_end="\n")).bundle.path


@pytest.fixture(scope="session")
def encoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT reward model, exported."""
    from plaudit_export.exporter import export_checkpoint
    from plaudit_export.testing import tiny_encoder_checkpoint

    folder = tmp_path_factory.mktemp("encoder")
    checkpoint = tiny_encoder_checkpoint(folder / "checkpoint")
    return export_checkpoint(str(checkpoint), folder / "bundle").bundle.path
