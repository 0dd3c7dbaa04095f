"""Which servers compute which model, from settings; asks none of them."""

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from plaudit_service.bundles.bundle import Bundle
from plaudit_service.engine.model import RewardModel
from plaudit_service.engine.remote.fleet import Fleet
from plaudit_service.engine.remote.vllm import Connection, Vllm
from plaudit_service.engine.runtime import BF16_TOLERANCE, Costs
from plaudit_service.errors import BundleError, SettingsError
from plaudit_service.settings import Settings

# Lists of about 32 sequences, several in flight, were the fastest (loadtests/bench_vllm.py).
LIST_SEQUENCES = 32
CALLS_PER_SERVER = 4
_LIST_TOKENS = 131_072

_COSTS = Costs(call_tokens=0, prefix_token=0.0, batch_tokens=_LIST_TOKENS, pads=False, max_rows=LIST_SEQUENCES)
_TOLERANCES = {"float32": 0.0, "float16": 0.05, "bfloat16": BF16_TOLERANCE}


@dataclass
class RemoteTraits:
    """What is known of servers before they are asked (`engines.Traits`)."""

    name: str
    tolerance: float
    promises_bits: bool = False
    costs: Costs = _COSTS
    lacks_along: str | None = "vLLM is asked for the pooled token alone; serve an onnx bundle for them"


def open_fleet(
    bundle: Bundle, urls: Sequence[str], settings: Settings, clock: Callable[[], float] = time.monotonic
) -> Fleet:
    """The servers of one model.

    Args:
        bundle: For such servers.
        urls: Of them.
        settings: Key, certificates, precision, limits.
        clock: Seconds that only grow.

    Raises:
        BundleError: it has a graph of its own.
        SettingsError: the files of key or certificates cannot be used.
    """
    if bundle.scoring.engine != "vllm":
        raise BundleError(
            f"bundle {bundle.path}: was exported with a graph of its own; serve it without --runtime vllm, or export "
            "the checkpoint with --engine vllm"
        )
    traits = RemoteTraits(f"vllm-{settings.engine_dtype}", _TOLERANCES[settings.engine_dtype])
    connection = Connection(settings.engine_timeout_s, settings.engine_key(), _trusted(settings.engine_ca_file))
    servers = [Vllm(url, connection) for url in urls]
    return Fleet(RewardModel(bundle, traits), servers, settings.engine_calls or CALLS_PER_SERVER, clock)


def engine_urls(settings: Settings, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The servers of each model, by its name.

    Args:
        settings: `engine_url` has URL, or NAME=URL where several models are served.
        names: Of the models.

    Raises:
        SettingsError: an address is none, names no model that is served, or a model has no server.
    """
    urls: dict[str, list[str]] = {name: [] for name in names}
    for text in settings.engine_url:
        if "@" in text:
            raise SettingsError(
                "--engine-url: contains a user name or password; give the API key with --engine-key-file"
            )
        before, equals, after = text.partition("=")
        name, url = (before, after) if equals and "/" not in before else ("", text)
        if not name and len(names) > 1:
            raise SettingsError(f"--engine-url {text}: {len(names)} models are served; write NAME=URL")
        if name and name not in urls:
            raise SettingsError(f"--engine-url {text}: no model {name} is served; here: {', '.join(names)}")
        urls[name or names[0]].append(_checked(url))
    for name, found in urls.items():
        if not found:
            raise SettingsError(f"--runtime vllm: no server for {name}; give --engine-url {name}=http://HOST:PORT")
    return urls


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_base = parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment)
        _ = parts.port
    except ValueError:
        is_base = False
    if not is_base:
        raise SettingsError(f"--engine-url {url}: is not the URL of a server; write http://HOST:PORT")
    return url.rstrip("/")


def _trusted(file: str) -> ssl.SSLContext | None:
    if not file:
        return None
    try:
        return ssl.create_default_context(cafile=Path(file))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"--engine-ca-file {file}: is not a PEM file of certificates ({error})") from error
