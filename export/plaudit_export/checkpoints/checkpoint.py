"""Loads a Hugging Face sequence-classification checkpoint: safetensors, a fast tokenizer, and no code of its own.

Knows nothing of graphs and bundles.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import transformers
from safetensors import SafetensorError

from plaudit_export.checkpoints.adapter import WEIGHTS, Adapter, is_adapter, read_adapter
from plaudit_export.checkpoints.architecture import (
    check_config,
    classifier_of,
    normalizes_not,
    sequence_classifier,
    tokenizer_notes,
)
from plaudit_export.checkpoints.places import Place, check_directory, locate
from plaudit_export.checkpoints.pooling import say_pad, settle_adapters_pad
from plaudit_export.checkpoints.tokenizer_file import FILE, LoadedTokenizer, load_from_files
from plaudit_export.checkpoints.weights import check_adapter_files, check_complete, check_stored
from plaudit_export.errors import ExportError, SourceError, first_line
from plaudit_export.quiet import quiet

Kind = Literal["causal", "encoder", "plain"]
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
        kind: `causal` keeps keys and values of a prefix; `encoder` sees the whole text at once; `plain` has a graph
            that another exporter made.
        architecture: the transformers class.
        model: in float32 and evaluation mode.
        tokenizer: a fast one; gives the ids of its `tokenizer.json`.
        auto_tokenizer: what transformers' AutoTokenizer makes of the same files, where that is another one.
        tokenizer_notes: what the files beside `tokenizer.json` change in it.
        adapter: peft's model around `model`, None where there is no adapter. `model` adds it as it computes, until
            `merge_adapter`.
        notes: what was decided by loading it, for the user.
    """

    id: str
    revision: str | None
    kind: Kind
    architecture: str
    model: torch.nn.Module
    tokenizer: Any
    auto_tokenizer: Any = None
    tokenizer_notes: tuple[str, ...] = ()
    adapter: Any = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The name of each head. A wrapper around a text model has them in its own config."""
        config: Any = self.model.config
        return [str(config.id2label[index]) for index in range(config.num_labels)]

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
            self.kind != "causal"
            and reads
            and "token_type_ids" in self.tokenizer.model_input_names
            and getattr(self.config, "type_vocab_size", 1) > 0
        )

    def merge_adapter(self) -> None:
        """Add the adapter to the model's weights, in place. The reference scores come first: they are unmerged.

        Raises:
            ExportError: peft cannot merge it.
        """
        if self.adapter is None:
            return
        try:
            with quiet():
                self.adapter.merge_and_unload(safe_merge=True)
        except LOADING_ERRORS as error:
            raise ExportError(f"{self.id}: its adapter cannot be merged: {first_line(error)}") from error


def load_checkpoint(source: str, *, builtin_class: bool = False, pad_token: str | None = None) -> Checkpoint:
    """Load a directory or a hub id in float32; of an adapter's directory, the base model with the adapter on it.

    Args:
        source: a directory, or a hub id.
        builtin_class: transformers' class is right, also where the config names code of the checkpoint's own.
        pad_token: what the trainer padded with, "" for nothing; None: as the checkpoint tells.

    Raises:
        SourceError: one line that says what is wrong with it.
    """
    place = locate(source)
    if not is_adapter(place.directory):
        with quiet():
            checkpoint = _load_whole(place, builtin_class=builtin_class)
    else:
        with quiet():
            adapter = read_adapter(place.directory)
        base = locate(adapter.base if adapter.revision is None else f"{adapter.base}@{adapter.revision}")
        with quiet():
            checkpoint = _load_adapter(place, adapter, base.directory, builtin_class=builtin_class)
    if pad_token is not None:
        if checkpoint.kind != "causal":
            raise SourceError(f"--pad-token: {source} is no decoder; an encoder does not pool by it")
        say_pad(source, checkpoint.model, checkpoint.tokenizer, pad_token)
    return checkpoint


def _load_whole(place: Place, *, builtin_class: bool) -> Checkpoint:
    source = str(place.directory)
    check_directory(place.directory)
    config = load_config(source)
    architecture = sequence_classifier(source, config)
    notes = check_config(source, config, architecture, builtin_class=builtin_class)
    notes += tokenizer_notes(place.directory, builtin_class=builtin_class)
    tokenizer = load_tokenizer(source)
    model, info = _load_model(source)
    check_complete(source, info, model.config.num_labels)
    unused = normalizes_not(config)
    notes += check_stored(
        place.directory,
        architecture,
        _names_in(model),
        info["unexpected_keys"],
        lambda name: unused and name.startswith("normalizer."),
    )
    return Checkpoint(
        id=place.id,
        revision=place.revision,
        kind=_kind(model),
        architecture=architecture,
        model=model,
        tokenizer=tokenizer.taken,
        auto_tokenizer=tokenizer.auto,
        tokenizer_notes=tokenizer.notes,
        notes=(*notes, *_heed_soft_cap(model)),
    )


def _load_adapter(place: Place, adapter: Adapter, base_directory: Path, *, builtin_class: bool) -> Checkpoint:
    directory, base = place.directory, str(base_directory)
    check_directory(base_directory)
    config = load_config(base)
    architecture = classifier_of(config)
    if architecture is None:
        raise SourceError(f"{base}: transformers has no *ForSequenceClassification class for its {config.model_type}")
    notes = check_config(base, config, architecture, builtin_class=builtin_class)
    notes += check_adapter_files(directory, WEIGHTS)
    has_tokenizer = any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    of_tokenizer = directory if has_tokenizer else base_directory
    notes += tokenizer_notes(of_tokenizer, builtin_class=builtin_class)
    tokenizer = load_tokenizer(str(of_tokenizer))
    # A language model has no head yet, or one of another size: the adapter brings its own.
    heads = {} if config.num_labels == adapter.num_labels else {"num_labels": adapter.num_labels}
    model, info = _load_model(base, **heads)
    check_complete(base, info, adapter.num_labels, adapter.brings)
    unexpected = info["unexpected_keys"]
    pretrained = _names_of(config) if unexpected else set()
    notes += check_stored(
        base_directory,
        architecture,
        _names_in(model),
        unexpected,
        lambda name: name in pretrained or adapter.replaces(name),
    )
    notes += _heed_soft_cap(model)
    kind = _kind(model)  # before the adapter wraps the head
    wrapped = _loading(str(directory), "adapter", lambda: adapter.put_on(model))
    if kind == "causal":
        notes += settle_adapters_pad(model, tokenizer.taken, has_tokenizer=has_tokenizer)
    return Checkpoint(
        id=place.id,
        revision=place.revision,
        kind=kind,
        architecture=architecture,
        model=model,
        tokenizer=tokenizer.taken,
        auto_tokenizer=tokenizer.auto,
        tokenizer_notes=tokenizer.notes,
        adapter=wrapped,
        notes=tuple(notes),
    )


def _loading(source: str, what: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except Exception as error:  # LOADING_ERRORS, and the Rust tokenizers raise plain Exception
        if "trust_remote_code" in str(error):
            raise SourceError(f"{source}: needs code from its repository, which is never run") from error
        raise SourceError(f"{source}: its {what} cannot be loaded: {first_line(error)}") from error


def load_config(source: str) -> Any:
    """The config of a directory.

    Raises:
        SourceError: there is none that transformers knows.
    """
    return _loading(source, "config", lambda: transformers.AutoConfig.from_pretrained(source, trust_remote_code=False))


def load_tokenizer(source: str) -> LoadedTokenizer:
    """The fast tokenizer of a directory: its `tokenizer.json`, whatever class transformers takes it for.

    Raises:
        SourceError: it has none.
    """
    loaded = _loading(source, "tokenizer", lambda: load_from_files(Path(source)))
    if not getattr(loaded.taken, "is_fast", False):
        raise SourceError(f"{source}: its tokenizer ({type(loaded.taken).__name__}) has no fast form ({FILE})")
    if loaded.taken.backend_tokenizer.get_vocab_size(with_added_tokens=False) == 0:
        raise SourceError(f"{source}: has no tokenizer; save it next to the model (tokenizer.save_pretrained)")
    return loaded


def _load_model(source: str, **options: Any) -> tuple[Any, Any]:
    """The model, and what transformers says of its weights: which are missing, of another shape, not used."""
    model, info = _loading(
        source,
        "model",
        lambda: transformers.AutoModelForSequenceClassification.from_pretrained(
            source,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        ),
    )
    return model.eval(), info


def _names_in(model: Any) -> set[str]:
    """The model's weights by their names, which may be stored with or without the base model's prefix."""
    prefix = f"{model.base_model_prefix}."
    names = set(model.state_dict())
    return names | {f"{prefix}{name}" for name in names} | {name.removeprefix(prefix) for name in names}


def _names_of(config: Any) -> set[str]:
    """The weights of the class that a base model's config names: its head has no part in an adapter's score."""
    own = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    if own is None:
        return set()
    with torch.device("meta"):
        return set(own(config).state_dict())


def _heed_soft_cap(model: Any) -> list[str]:
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


def _kind(model: torch.nn.Module) -> Kind:
    """A decoder's classification head is called `score` and sits on a base model that takes past keys and values."""
    takes_past = "past_key_values" in inspect.signature(network(model).forward).parameters
    return "causal" if takes_past and isinstance(getattr(model, "score", None), torch.nn.Linear) else "encoder"
