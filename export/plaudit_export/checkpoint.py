"""Loads a Hugging Face sequence-classification checkpoint: safetensors, a fast tokenizer, and no code of its own.

Knows nothing of graphs and bundles.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from safetensors import SafetensorError

from plaudit_export.errors import SourceError, first_line
from plaudit_export.quiet import quiet

Kind = Literal["causal", "encoder"]
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


@dataclass(frozen=True)
class Checkpoint:
    """A loaded reward model.

    Attributes:
        id: the hub id, or the name of the local directory.
        revision: commit of the hub repository, None for a directory.
        kind: `causal` keeps keys and values of a prefix; `encoder` sees the whole text at once.
        architecture: the transformers class.
        model: in float32 and evaluation mode.
        tokenizer: a fast one, as transformers loads it.
    """

    id: str
    revision: str | None
    kind: Kind
    architecture: str
    model: torch.nn.Module
    tokenizer: Any

    @property
    def config(self) -> Any:
        """The config of the text model."""
        config: Any = self.model.config
        return config.get_text_config()

    @property
    def attention(self) -> str:
        """The attention implementation that the reference scores come from."""
        return str(getattr(self.model.config, "_attn_implementation", None) or "eager")

    @property
    def token_type_ids(self) -> bool:
        """Whether the tokenizer gives token types and the model reads them."""
        reads = "token_type_ids" in inspect.signature(self.model.forward).parameters
        return (
            self.kind == "encoder"
            and reads
            and "token_type_ids" in self.tokenizer.model_input_names
            and getattr(self.config, "type_vocab_size", 1) > 0
        )


def load_checkpoint(source: str) -> Checkpoint:
    """Load a directory or a hub id in float32.

    Raises:
        SourceError: one line that says what is wrong with it.
    """
    directory = Path(source).expanduser()
    is_directory = directory.is_dir()
    if is_directory:
        _check_directory(directory)
        source = str(directory)
    elif directory.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        what = "is not a directory" if directory.exists() else "no such directory"
        raise SourceError(f"{source}: {what}; give the directory that holds config.json and model.safetensors")
    with quiet():
        config = _loading(
            source, "config", lambda: transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        )
        architecture = _architecture(source, config)
        tokenizer = _load_tokenizer(source)
        model = _load_model(source)
    return Checkpoint(
        id=directory.resolve().name if is_directory else source,
        revision=None if is_directory else getattr(config, "_commit_hash", None),
        kind=_kind(model),
        architecture=architecture,
        model=model,
        tokenizer=tokenizer,
    )


def _check_directory(directory: Path) -> None:
    """Names the usual mistakes before transformers words them."""
    if (directory / "adapter_config.json").exists():
        raise SourceError(f"{directory}: holds a PEFT adapter; merge it into its base model first (merge_and_unload)")
    if not (directory / "config.json").is_file():
        raise SourceError(f"{directory}: has no config.json; give the directory of a Hugging Face checkpoint")
    if any(directory.glob("*.safetensors")):
        return
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise SourceError(
            f"{directory}: holds pickled weights only, which are never loaded because a pickle can run code; "
            "save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise SourceError(f"{directory}: has no *.safetensors file")


def _loading(source: str, what: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except LOADING_ERRORS as error:
        if "trust_remote_code" in str(error):
            raise SourceError(f"{source}: needs code from its repository, which is never run") from error
        raise SourceError(f"{source}: its {what} cannot be loaded: {first_line(error)}") from error


def _architecture(source: str, config: Any) -> str:
    names = list(getattr(config, "architectures", None) or [])
    known = [name for name in names if name.endswith("ForSequenceClassification") and hasattr(transformers, name)]
    if not known:
        remote = ", and its code is in its repository, which is never run" if hasattr(config, "auto_map") else ""
        what = f"is a {names[0]}" if names else "names no architecture"
        raise SourceError(f"{source}: {what}, not a *ForSequenceClassification model of transformers{remote}")
    if getattr(config, "quantization_config", None) is not None:
        raise SourceError(f"{source}: its weights are quantized; give the checkpoint before quantization")
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(f"{source}: {known[0]} is an encoder-decoder; only decoders and encoders can be exported")
    return str(known[0])


def _load_tokenizer(source: str) -> Any:
    tokenizer = _loading(
        source,
        "tokenizer",
        lambda: transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, use_fast=True),
    )
    if not getattr(tokenizer, "is_fast", False):
        raise SourceError(f"{source}: its tokenizer ({type(tokenizer).__name__}) has no fast form (tokenizer.json)")
    if tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) == 0:
        raise SourceError(f"{source}: has no tokenizer; save it next to the model (tokenizer.save_pretrained)")
    return tokenizer


def _load_model(source: str) -> torch.nn.Module:
    model, info = _loading(
        source,
        "model",
        lambda: transformers.AutoModelForSequenceClassification.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        ),
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, info[problem])):
            word = problem.split("_")[0]
            raise SourceError(
                f"{source}: {len(names)} {word} weights, such as {names[0]}; they would be random numbers. "
                "Is it a reward model's checkpoint, saved whole?"
            )
    loaded: torch.nn.Module = model.eval()
    return loaded


def _kind(model: torch.nn.Module) -> Kind:
    """A decoder's classification head is called `score` and sits on a base model that takes past keys and values."""
    base: Any = model.base_model
    takes_past = "past_key_values" in inspect.signature(base.forward).parameters
    return "causal" if takes_past and isinstance(getattr(model, "score", None), torch.nn.Linear) else "encoder"
