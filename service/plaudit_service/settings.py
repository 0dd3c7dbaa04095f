"""The settings of `plaudit-serve`, each by flag and by `PLAUDIT_*` environment variable; read once, at the edge."""

import argparse
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from plaudit_service.errors import SettingsError

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def _separated_by(separator: str) -> BeforeValidator:
    """Reads several texts from one, as environment variables hold them, and from each one of a repeated flag."""

    def split(given: Any) -> list[str]:
        texts = given if isinstance(given, (list, tuple)) else [given]
        parts = (part.strip() for text in texts for part in str(text).split(separator))
        return [part for part in parts if part]

    return BeforeValidator(split)


Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Dialect = Literal["openrlhf", "llamafactory", "vllm", "slime", "tei", "sglang", "nemo-gym"]

# The parts of `--help` and of docs/reference/settings.md, by the first setting of each.
HEADINGS = {
    "host": "Address",
    "export_options": "Checkpoints",
    "runtime": "Runtime and vLLM servers",
    "device": "Device, threads, batches",
    "combine": "Combinations and caches",
    "engine_timeout_s": "Queue, and time of an engine's call",
    "max_sequences_per_request": "Limits of a request",
    "dialects": "Dialects of other trainers",
    "max_connections": "Connections",
    "api_key_file": "Access",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True))
class Settings:
    """What an operator can set; `max_body_bytes` by --max-body-bytes or PLAUDIT_MAX_BODY_BYTES.

    A setting is one declaration: type with limits, default, and the text that `--help` shows. Text is converted.
    """

    host: str = "127.0.0.1"
    """address to bind"""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """TCP port; 0: any free one, named in the log line `listening`"""
    export_options: Annotated[tuple[str, ...], _separated_by(";")] = ()
    """NAME or NAME=VALUE: an option of `plaudit-export checkpoint` for the checkpoints that are served, such as
    append-eos or max-tokens=2048; the flag may be repeated, the variable separates options by semicolons"""
    export_cache: str = ""
    """directory for the bundles that checkpoints are exported to; none: plaudit/bundles in $XDG_CACHE_HOME, or in
    ~/.cache"""
    runtime: Literal["onnxruntime", "openvino", "vllm"] = "onnxruntime"
    """inference runtime: onnxruntime or openvino in this process, or vllm: separate servers (--engine-url)"""
    engine_url: Annotated[tuple[str, ...], _separated_by(",")] = ()
    """with --runtime vllm: URLs of vLLM servers, separated by commas; NAME=URL if several bundles are served; the flag
    may be repeated"""
    engine_dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """with --runtime vllm: data type of the vLLM servers (their --dtype); it decides how far a score may be from its
    reference"""
    engine_key_file: str = ""
    """file with the API key of the vLLM servers (their --api-key)"""
    engine_ca_file: str = ""
    """PEM file of the certificates to trust for https:// engines; none: the system's certificates"""
    engine_canary_s: Seconds = 60.0
    """seconds between two checks of a vLLM server, each with one golden text"""
    device: Annotated[str, Field(pattern=r"^(|cpu|cuda(:\d{1,3})?)$", examples=["cpu", "cuda", "cuda:1"])] = ""
    """device that computes: cpu, cuda (the first device) or cuda:N; not set: the value of the older --provider"""
    provider: Literal["cpu", "cuda"] = "cpu"
    """older form of --device: cpu or cuda; used if --device is not set"""
    num_threads: Annotated[int, Field(ge=0, le=4096)] = 0
    """threads of the engine; 0: one per core that CPU affinity and CPU quota allow"""
    engine_calls: Annotated[int, Field(ge=0, le=64)] = 0
    """engine calls at the same time, each with its share of the threads; 0: chosen by device, threads and memory; with
    --runtime vllm requests in flight to each server, 0: 4"""
    max_batch_tokens: Count | None = None
    """largest batch of one engine call, in padded tokens (rows x longest row); not set: 1024 on the CPU, divided by the
    calls at the same time, 16384 on a CUDA device, 131072 in one request to vLLM"""
    combine: Annotated[tuple[str, ...], _separated_by(";")] = ()
    """NAME=FORMULA: a model that combines the scores of others, such as safe=0.7*helpful+0.3*harmless, careful=min(a,b)
    or careful=mean-std(a,b); the flag may be repeated, the variable separates formulas by semicolons"""
    share_prefixes: bool = True
    """compute tokens that several causal sequences have in common at their start only once"""
    prefix_cache_bytes: CountOrZero | None = None
    """bytes per model for computed prefixes that are kept for later sequences; not set: 268435456 on the CPU, an eighth
    of the memory that a CUDA device has left"""
    score_cache_size: CountOrZero = 0
    """number of sequences per model whose exact scores are cached; 0: none"""
    engine_timeout_s: Annotated[float, Field(ge=0.1)] = 300.0
    """seconds after which an engine call counts as hung: open requests get 503 and /healthz fails; with vLLM servers
    only /readyz fails"""
    max_queued_sequences: Count = 8192
    """limit of waiting sequences; beyond: 429"""
    max_queued_tokens: Count = 16_777_216
    """limit of waiting tokens; beyond: 429"""
    fair_by_address: bool = False
    """without API keys, share the queue fairly between client addresses; several API keys always share it fairly"""
    max_sequences_per_request: Count = 1024
    """limit of sequences in one request; beyond: 413"""
    max_body_bytes: Count = 33_554_432
    """limit of a request body, in bytes; beyond: 413"""
    max_text_chars: Count = 1_000_000
    """limit of one text or chat, in characters; beyond: 413"""
    max_request_chars: Count = 33_554_432
    """limit of all sequences of a request, in characters; the prompt of a group counts once for each completion;
    beyond: 413"""
    max_along_tokens: Count = 1_048_576
    """limit of the tokens in one request for which scores along the texts are asked; beyond: 413"""
    max_pending_bytes: Count = 268_435_456
    """limit of all request bodies being read and tokenized, in bytes, repeated prompts included; beyond: 429"""
    dialects: Annotated[tuple[Dialect, ...], _separated_by(",")] = ()
    """routes of other trainers and clients to answer, separated by commas: openrlhf, llamafactory, vllm, slime, tei,
    sglang, nemo-gym; the flag may be repeated"""
    dialect_raw: bool = False
    """answer dialects with raw scores, without the model's normalization"""
    dialect_truncation: Literal["error", "left", "right"] = "error"
    """what dialects do with a text longer than the model's limit: error (422), or keep its end (left) or its start
    (right)"""
    dialect_check_tokens: bool = True
    """refuse a dialect's text that contains a special token unknown to the reward model's tokenizer"""
    policy_tokenizer: str = ""
    """directory of the policy's tokenizer, which declares the special tokens to look for in dialects' texts; none: the
    special tokens of all known tokenizers"""
    max_waiting_requests: Count = 1024
    """limit of dialects' requests that wait for room in the queue; beyond: 503"""
    max_connections: Count = 4096
    """limit of open connections; further ones are closed at once"""
    max_header_bytes: Count = 32_768
    """limit of a request's URL and headers, in bytes; beyond: 431"""
    header_timeout_s: Seconds = 10.0
    """seconds from connecting, or from a request's first byte, to the end of its headers"""
    body_timeout_s: Seconds = 60.0
    """seconds in which a request body has to arrive; beyond: 408"""
    keep_alive_s: Seconds = 75.0
    """seconds that an idle connection is kept open"""
    drain_timeout_s: Seconds = 30.0
    """seconds that open requests get to finish after SIGTERM"""
    api_key_file: str = ""
    """file with one API key per line; requests then need the header Authorization: Bearer KEY"""
    allow_unauthenticated: bool = False
    """allow an address other than loopback without any API key"""
    console: bool = True
    """answer / and /console with a page that shows scores in a browser; the page holds no data and needs no API key"""
    open_metrics: bool = False
    """answer /metrics, /docs and /openapi.json without an API key"""
    tls_certificate_file: str = ""
    """PEM file of the certificate and its chain; the service then speaks HTTPS"""
    tls_key_file: str = ""
    """PEM file of the certificate's private key, without a passphrase"""

    @property
    def computes_on(self) -> str:
        """The device: `cpu`, `cuda` or `cuda:N`."""
        return self.device or self.provider

    def api_keys(self, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
        """Keys of the file and of PLAUDIT_API_KEYS (separated by commas).

        Raises:
            SettingsError: the file cannot be read or holds no key, or a key cannot stand in a header.
        """
        keys = _keys("PLAUDIT_API_KEYS", environ.get("PLAUDIT_API_KEYS", "").split(","))
        if self.api_key_file:
            place = f"--api-key-file {self.api_key_file}"
            in_file = _keys_in(place, self.api_key_file)
            if not in_file:
                raise SettingsError(f"{place}: contains no key; write one key per line")
            keys += in_file
        return tuple(keys)

    def engine_key(self) -> str:
        """The key of the engines; "": none.

        Raises:
            SettingsError: the file cannot be read, or does not hold exactly one key.
        """
        if not self.engine_key_file:
            return ""
        place = f"--engine-key-file {self.engine_key_file}"
        keys = _keys_in(place, self.engine_key_file)
        if len(keys) != 1:
            raise SettingsError(f"{place}: contains {len(keys)} keys; leave only one, on a line of its own")
        return keys[0]

    def check_engine(self) -> None:
        """Refuse settings of engines that would do nothing, or are missing.

        Raises:
            SettingsError: they do not fit together.
        """
        if self.runtime == "vllm" and not self.engine_url:
            raise SettingsError("--runtime vllm: needs the URL of a vLLM server; give --engine-url http://HOST:PORT")
        if self.runtime == "vllm" and self.computes_on != "cpu":
            raise SettingsError(
                f"--runtime vllm: computes on the servers, not on this machine; leave --device {self.computes_on} out"
            )
        if self.runtime != "vllm" and self.engine_url:
            raise SettingsError(
                f"--engine-url: --runtime {self.runtime} computes in this process; give --runtime vllm, too"
            )

    def tls(self) -> ssl.SSLContext | None:
        """The context of HTTPS; None: plain HTTP.

        Raises:
            SettingsError: certificate or key is missing, cannot be read, or they do not belong together.
        """
        certificate, key = self.tls_certificate_file, self.tls_key_file
        if not certificate and not key:
            return None
        if not (certificate and key):
            raise SettingsError("--tls-certificate-file and --tls-key-file must be given together")
        for flag, file in (("--tls-certificate-file", certificate), ("--tls-key-file", key)):
            try:
                Path(file).read_bytes()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise SettingsError(f"{flag} {file}: cannot be read ({reason})") from error
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # With a passphrase OpenSSL would ask on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"--tls-certificate-file {certificate} --tls-key-file {key}: these files are not a PEM certificate "
                f"and its key without a passphrase ({getattr(error, 'reason', None) or error})"
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


def _keys(place: str, texts: Sequence[str]) -> list[str]:
    """The keys among these texts; none is shown, because messages end up in logs."""
    keys = {number: key for number, text in enumerate(texts, start=1) if (key := text.strip())}
    for number, key in keys.items():
        if not (key.isascii() and key.isprintable()):
            raise SettingsError(
                f"{place}: key {number} contains characters that are not allowed in an HTTP header; give printable "
                "ASCII"
            )
    return list(keys.values())


def _keys_in(place: str, file: str) -> list[str]:
    """The keys of a file, one a line."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{place}: cannot be read ({error})") from error
    return _keys(place, lines)


def flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def environment_variable(name: str) -> str:
    """The variable of a setting."""
    return f"PLAUDIT_{name.upper()}"


def shown_default(default: Any) -> str:
    """A default as an operator would write it."""
    if default in ("", (), None):
        return "not set"
    return str(default).lower() if isinstance(default, bool) else str(default)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting; the help names default and variable."""
    group: argparse._ActionsContainer = parser
    for setting in fields(Settings):
        if setting.name in HEADINGS:
            group = parser.add_argument_group(HEADINGS[setting.name])
        description = " ".join(schemas()[setting.name]["description"].split())
        shown = f"{description} (default: {shown_default(setting.default)}; {environment_variable(setting.name)})"
        if isinstance(setting.default, bool):
            kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        elif isinstance(setting.default, tuple):
            kind = {"action": "append", "metavar": setting.name.upper()}
        else:
            kind = {"metavar": setting.name.rsplit("_", 1)[-1].upper()}
        group.add_argument(flag(setting.name), default=None, help=shown, **kind)


def from_arguments(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings: a flag wins over its environment variable, which wins over the default.

    Raises:
        SettingsError: a value has the wrong type or is out of range.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for setting in fields(Settings):
        name, variable = setting.name, environment_variable(setting.name)
        given = getattr(arguments, name)
        if given is not None:
            values[name], places[name] = given, flag(name)
        elif environ.get(variable):
            values[name], places[name] = environ[variable], variable
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise SettingsError(f"{places[name]}: {_refusal(name, first)}") from error


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each setting: choices, and its text as `description`."""
    return dict(TypeAdapter(Settings).json_schema()["properties"])


_PROBLEMS = {
    "bool": "is neither true nor false",
    "int": "is not a whole number",
    "float": "is not a number",
    "finite": "is not a finite number",
}


def _refusal(name: str, error: ErrorDetails) -> str:
    """What pydantic refused: the value, and what it may be."""
    value, kind = error["input"], error["type"].partition("_")[0]
    if kind in ("greater", "less"):
        (limit,) = error["ctx"].values()
        return f"{value}, but the {'minimum' if kind == 'greater' else 'maximum'} is {limit:g}"
    if error["type"] == "string_pattern_mismatch":
        return f"{value!r} is not of a form like {', '.join(schemas()[name]['examples'])}"
    if kind == "literal":
        schema = schemas()[name]
        return f"{value!r} is not one of {', '.join(schema.get('items', schema)['enum'])}"
    return f"{value!r} {_PROBLEMS.get(kind, 'cannot be used: ' + error['msg'])}"
