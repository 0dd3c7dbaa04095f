"""The settings of `plaudit-serve`, each by flag and by `PLAUDIT_*` environment variable; read once, at the edge."""

import argparse
import math
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from plaudit_service.errors import SettingsError

# On two cores, batches between 512 and 2,048 padded tokens were the fastest (docs/decisions.md).
DEFAULT_MAX_BATCH_TOKENS = 1024
DEFAULT_PREFIX_CACHE_BYTES = 256 << 20

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def _setting(
    default: Any,
    help_text: str,
    *,
    minimum: float | None = None,
    choices: Sequence[str] = (),
    several: bool = False,
) -> Any:
    about = {"help": help_text, "minimum": minimum, "choices": tuple(choices), "several": several}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Settings:
    """What an operator can set; `max_body_bytes` by --max-body-bytes or PLAUDIT_MAX_BODY_BYTES."""

    host: str = _setting("127.0.0.1", "address to bind")
    port: int = _setting(8000, "TCP port; 0: any free one, named in the log line `listening`", minimum=0)
    runtime: str = _setting(
        "onnxruntime", "inference runtime: onnxruntime or openvino", choices=["onnxruntime", "openvino"]
    )
    provider: str = _setting(
        "cpu", "execution provider of onnxruntime: cpu, cuda or tensorrt", choices=["cpu", "cuda", "tensorrt"]
    )
    num_threads: int = _setting(
        0, "threads of the engine; 0: one per core that affinity and CPU quota leave", minimum=0
    )
    max_batch_tokens: int = _setting(
        DEFAULT_MAX_BATCH_TOKENS, "padded tokens of one engine call (rows x longest)", minimum=1
    )
    combine: tuple[str, ...] = _setting(
        (),
        "NAME=FORMULA, a model that combines the scores of others: safe=0.7*helpful+0.3*harmless, careful=min(a,b), "
        "careful=mean-std(a,b); the flag may be repeated, the variable separates by semicolons",
    )
    share_prefixes: bool = _setting(True, "compute the tokens that causal sequences begin with in common only once")
    prefix_cache_bytes: int = _setting(
        DEFAULT_PREFIX_CACHE_BYTES,
        "bytes of computed prefixes that are kept per model for sequences to come",
        minimum=0,
    )
    score_cache_size: int = _setting(0, "sequences per model whose exact scores are kept; 0: none", minimum=0)
    engine_timeout_s: float = _setting(
        300.0,
        "seconds after which a call of the engine counts as hung: open requests get 503, /healthz fails",
        minimum=0.1,
    )
    max_queued_sequences: int = _setting(8192, "sequences that may wait; beyond: 429", minimum=1)
    max_queued_tokens: int = _setting(16_777_216, "tokens that may wait; beyond: 429", minimum=1)
    max_sequences_per_request: int = _setting(1024, "sequences of one request; beyond: 413", minimum=1)
    max_body_bytes: int = _setting(33_554_432, "bytes of a request body; beyond: 413", minimum=1)
    max_text_chars: int = _setting(1_000_000, "characters of one text or chat; beyond: 413", minimum=1)
    max_request_chars: int = _setting(
        33_554_432, "characters of all sequences of a request, prompts of groups repeated; beyond: 413", minimum=1
    )
    max_pending_bytes: int = _setting(
        268_435_456, "bytes (and repeated characters) of all bodies being read and tokenized; beyond: 429", minimum=1
    )
    dialects: str = _setting(
        "",
        "other trainers' routes to answer, separated by commas: openrlhf, llamafactory, vllm, slime",
        choices=["openrlhf", "llamafactory", "vllm", "slime"],
        several=True,
    )
    dialect_raw: bool = _setting(False, "answer dialects with raw scores instead of normalized ones")
    dialect_truncation: str = _setting(
        "error",
        "what dialects do with a text over the model's limit: error (422), or keep its end (left) or start (right)",
        choices=["error", "left", "right"],
    )
    dialect_check_tokens: bool = _setting(
        True, "refuse dialects' texts with special tokens that the reward model's tokenizer does not know"
    )
    max_waiting_requests: int = _setting(
        1024, "requests of dialects that may wait for room in the queue; beyond: 503", minimum=1
    )
    max_connections: int = _setting(4096, "open connections; further ones are closed at once", minimum=1)
    max_header_bytes: int = _setting(32_768, "bytes of a request's URL and headers; beyond: 431", minimum=1)
    header_timeout_s: float = _setting(
        10.0, "seconds from connecting, or from a request's first byte, to the end of its headers", minimum=0
    )
    body_timeout_s: float = _setting(60.0, "seconds in which a body has to arrive; beyond: 408", minimum=0)
    keep_alive_s: float = _setting(75.0, "seconds that an idle connection is kept", minimum=0)
    drain_timeout_s: float = _setting(30.0, "seconds that open requests get after SIGTERM", minimum=0)
    api_key_file: str = _setting("", "file with one API key a line; requests then need Authorization: Bearer KEY")
    allow_unauthenticated: bool = _setting(False, "bind another address than loopback without any API key")
    open_metrics: bool = _setting(False, "answer /metrics, /docs and /openapi.json without an API key")
    tls_certificate_file: str = _setting("", "PEM file of the certificate and its chain; then HTTPS is spoken")
    tls_key_file: str = _setting("", "PEM file of the certificate's private key, without a passphrase")

    @property
    def dialect_names(self) -> tuple[str, ...]:
        """The dialects to answer."""
        return _split(self.dialects)

    def api_keys(self, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
        """Keys of the file and of PLAUDIT_API_KEYS (separated by commas).

        Raises:
            SettingsError: the file cannot be read or holds no key.
        """
        keys = [key.strip() for key in environ.get("PLAUDIT_API_KEYS", "").split(",")]
        if self.api_key_file:
            try:
                lines = Path(self.api_key_file).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"--api-key-file {self.api_key_file}: cannot be read ({error})") from error
            if not any(line.strip() for line in lines):
                raise SettingsError(f"--api-key-file {self.api_key_file}: holds no key; put one key on a line")
            keys += [line.strip() for line in lines]
        return tuple(key for key in keys if key)

    def tls(self) -> ssl.SSLContext | None:
        """The context of HTTPS; None: plain HTTP.

        Raises:
            SettingsError: certificate or key is missing, cannot be read, or they do not belong together.
        """
        certificate, key = self.tls_certificate_file, self.tls_key_file
        if not certificate and not key:
            return None
        if not (certificate and key):
            raise SettingsError("--tls-certificate-file and --tls-key-file have to be given together")
        for flag, file in (("--tls-certificate-file", certificate), ("--tls-key-file", key)):
            try:
                Path(file).read_bytes()
            except OSError as error:
                raise SettingsError(f"{flag} {file}: cannot be read ({error.strerror})") from error
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # With a passphrase OpenSSL would ask on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"--tls-certificate-file {certificate} --tls-key-file {key}: they are not a PEM certificate and its "
                f"key without a passphrase ({getattr(error, 'reason', None) or error})"
            ) from error
        return context

    def check_binding(self, api_keys: Sequence[str]) -> None:
        """Refuse to serve strangers by accident.

        Raises:
            SettingsError: the address is not loopback, there is no key, and nobody allowed that.
        """
        if self.host not in _LOOPBACK and not api_keys and not self.allow_unauthenticated:
            raise SettingsError(
                f"--host {self.host} would serve other machines without an API key; "
                "give --api-key-file FILE, or --allow-unauthenticated"
            )


def environment_variable(name: str) -> str:
    """The variable of a setting."""
    return f"PLAUDIT_{name.upper()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting; the help names default and variable."""
    for setting in fields(Settings):
        flag = f"--{setting.name.replace('_', '-')}"
        shown = f"{setting.metadata['help']} (default: {setting.default!r}; {environment_variable(setting.name)})"
        if isinstance(setting.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=shown)
        elif isinstance(setting.default, tuple):
            parser.add_argument(flag, action="append", default=None, metavar=setting.name.upper(), help=shown)
        else:
            parser.add_argument(flag, default=None, metavar=setting.name.rsplit("_", 1)[-1].upper(), help=shown)


def from_arguments(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings: a flag wins over its environment variable, which wins over the default.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        assert setting.default is not MISSING
        variable = environment_variable(setting.name)
        flag = getattr(arguments, setting.name)
        if flag is not None:
            where, value = f"--{setting.name.replace('_', '-')}", flag
        elif environ.get(variable):
            where, value = variable, environ[variable]
        else:
            continue
        values[setting.name] = _convert(where, value, setting.default, setting.metadata)
    return Settings(**values)


def _convert(where: str, value: Any, default: Any, metadata: Mapping[str, Any]) -> Any:
    kind = type(default)
    if kind is tuple:
        parts = value.split(";") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip())
    if kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if isinstance(value, bool):
            return value
        if value.lower() not in words:
            raise SettingsError(f"{where}: {value!r} is neither true nor false")
        return words[value.lower()]
    try:
        converted = kind(value)
    except ValueError as error:
        raise SettingsError(f"{where}: {value!r} is not a number ({kind.__name__})") from error
    if kind is float and not math.isfinite(converted):
        raise SettingsError(f"{where}: {value!r} is not a finite number")
    if metadata["minimum"] is not None and not converted >= metadata["minimum"]:
        raise SettingsError(f"{where}: {converted}, but the least is {metadata['minimum']}")
    for choice in _split(converted) if metadata["several"] else (converted,):
        if metadata["choices"] and choice not in metadata["choices"]:
            raise SettingsError(f"{where}: {choice!r} is none of {', '.join(metadata['choices'])}")
    return converted


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
