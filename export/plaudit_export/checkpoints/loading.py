"""What transformers loads from a directory, with its errors in one line. Knows nothing of what makes a reward model."""

import importlib.metadata
import inspect
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import modeling_utils

from plaudit_export.checkpoints.config_files import CONFIG, read_fields
from plaudit_export.checkpoints.weights import FRACTIONS, check_types
from plaudit_export.errors import SourceError, first_line

T = TypeVar("T")

# What transformers raises for files that are missing, malformed, unreachable, or of another kind than they say.
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
)

_FLOAT_BYTES = 4
# Fields that count the experts of a mixture.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def loading(source: str, what: str, load: Callable[[], T]) -> T:
    """What `load` gives.

    Raises:
        SourceError: one line for whatever it raises.
    """
    try:
        return load()
    except SourceError:
        raise
    except Exception as error:  # LOADING_ERRORS, and the Rust tokenizers raise plain Exception
        if "trust_remote_code" in str(error):
            raise SourceError(f"{source}: needs custom code from its repository, which is never run") from error
        raise SourceError(f"{source}: its {what} cannot be loaded: {first_line(error)}") from error


def load_model(
    auto_class: Any, source: str, config: Any, *, copies_in: Path | None = None, **options: Any
) -> tuple[Any, Any]:
    """The model of one of transformers' Auto classes in float32, and what transformers says of its weights.

    Missing weights and other shapes are for the caller to refuse.

    Args:
        auto_class: of transformers.
        source: a directory.
        config: of the model.
        copies_in: a directory for copies in float32 of files of other types, which the weights are mapped from: the
            system keeps as much of them in memory as there is room for. None: they are read into memory.
        options: further ones of `from_pretrained`.

    Raises:
        SourceError: it cannot be loaded, or is stored as whole numbers.
    """
    check_types(Path(source))
    with _files_read_in_parts(copies_in):
        model, info = loading(
            source,
            "model",
            lambda: auto_class.from_pretrained(
                source,
                config=config,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **_experts(config),
                **options,
            ),
        )
    return model.eval(), {**info, "mismatched_keys": _with_shapes(source, model, info["mismatched_keys"])}


def _with_shapes(source: str, model: Any, mismatched: Any) -> list[tuple[str, Any, Any]]:
    """Weights of another shape, each with the stored and the model's; transformers 4 gives their names alone.

    A shape that cannot be found is (0,): such a weight is still told.
    """
    names = {each for each in mismatched if isinstance(each, str)}
    stored: dict[str, tuple[int, ...]] = {}
    for file in Path(source).glob("*.safetensors") if names else ():
        with safe_open(str(file), framework="pt") as weights:
            stored |= {name: tuple(weights.get_slice(name).get_shape()) for name in names & set(weights.keys())}
    made = {name: tuple(weight.shape) for name, weight in model.state_dict().items()} if names else {}
    return [
        (each, stored.get(each, (0,)), made.get(each, (0,))) if isinstance(each, str) else each for each in mismatched
    ]


@contextmanager
def _files_read_in_parts(copies_in: Path | None) -> Iterator[None]:
    """Inside, transformers reads files of other types tensor by tensor: mapped, they would lie beside the new weights.

    A file in float32 stays mapped, and its weights are what is mapped; so is a copy in float32.
    """
    opened = modeling_utils.safe_open

    def read(path: Any, *arguments: Any, **options: Any) -> Any:
        file = opened(path, *arguments, **options)
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  it is no mapping
        if types == {"F32"}:
            return file
        if copies_in is not None and all(map(FRACTIONS.match, types)):
            return opened(str(_copy_in_float32(Path(path), copies_in)), *arguments, **options)
        return opened(path, *arguments, **options | {"backend": "pread"})

    modeling_utils.safe_open = read
    try:
        yield
    finally:
        modeling_utils.safe_open = opened


def _copy_in_float32(path: Path, directory: Path) -> Path:
    """Write a file of weights again, tensor by tensor, in float32."""
    copy = directory / path.name
    with safe_open(str(path), "pt") as weights, copy.open("wb") as output:
        names = list(weights.keys())
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            shape = weights.get_slice(name).get_shape()
            start, end = end, end + _FLOAT_BYTES * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        output.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            output.write(weights.get_tensor(name).float().numpy().tobytes())
    return copy


def load_config(source: str) -> Any:
    """The config of a directory.

    Raises:
        SourceError: there is none that transformers knows.
    """
    read_fields(Path(source), CONFIG)
    return loading(source, "config", lambda: transformers.AutoConfig.from_pretrained(source, trust_remote_code=False))


def heed_soft_cap(model: Any) -> list[str]:
    """Take the attention that computes the config's soft cap: transformers 4's default leaves it out (Gemma 2)."""
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if not capped or model.config._attn_implementation != "sdpa":
        return []
    model.set_attn_implementation("eager")
    return [
        "attention is computed by transformers' eager implementation: sdpa leaves out the config's "
        "attn_logit_softcapping"
    ]


def network(model: Any) -> Any:
    """What is below the head. Gemma 3's wrapper does not name it as its base in transformers 4."""
    return model.model if model.base_model is model and hasattr(model, "model") else model.base_model


def takes_keys_and_values(source: str, base: Any) -> bool:
    """Whether a model without its head continues from keys and values of earlier tokens, as decoders do.

    Raises:
        SourceError: by its model type it is a decoder, and its forward takes none by the name that is known here.
    """
    takes = "past_key_values" in inspect.signature(base.forward).parameters
    if not takes and type(base.config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SourceError(
            f"{source}: {type(base).__name__} is a decoder, but in transformers {transformers.__version__} its forward "
            "takes no past_key_values; pip install 'transformers<5.24'"
        )
    return takes


def _experts(config: Any) -> dict[str, str]:
    """Of a mixture of experts the plain loop, which the reference scores come from; transformers 4 has nothing else."""
    text_config = config.get_text_config()
    has_experts = any((getattr(text_config, field, None) or 0) > 1 for field in _EXPERTS)
    can_choose = int(importlib.metadata.version("transformers").split(".")[0]) >= 5
    return {"experts_implementation": "eager"} if has_experts and can_choose else {}
