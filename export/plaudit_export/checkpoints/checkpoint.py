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
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from plaudit_export.checkpoints.adapter import Adapter, is_adapter, read_adapter
from plaudit_export.checkpoints.tokenizer_file import FILE, LoadedTokenizer, load_from_files
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

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w./-]*))?")
_CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]

_HEAD = re.compile(r"(^|\.)(score|classifier)\.")


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


def load_checkpoint(source: str) -> Checkpoint:
    """Load a directory or a hub id in float32; of an adapter's directory, the base model with the adapter on it.

    Raises:
        SourceError: one line that says what is wrong with it.
    """
    place = _locate(source)
    if not is_adapter(place.directory):
        with quiet():
            return _load_whole(place)
    with quiet():
        adapter = read_adapter(place.directory)
    base = _locate(adapter.base if adapter.revision is None else f"{adapter.base}@{adapter.revision}")
    with quiet():
        return _load_adapter(place, adapter, base.directory)


@dataclass(frozen=True)
class _Place:
    """Where a checkpoint is: its directory, its id, and the commit of the hub that it was downloaded from."""

    directory: Path
    id: str
    revision: str | None = None


def _load_whole(place: _Place) -> Checkpoint:
    source = str(place.directory)
    _check_directory(place.directory)
    config = load_config(source)
    architecture = sequence_classifier(source, config)
    _check_config(source, config, architecture)
    tokenizer = load_tokenizer(source)
    model, info = _load_model(source)
    _check_complete(source, info)
    return Checkpoint(
        id=place.id,
        revision=place.revision,
        kind=_kind(model),
        architecture=architecture,
        model=model,
        tokenizer=tokenizer.taken,
        auto_tokenizer=tokenizer.auto,
        tokenizer_notes=tokenizer.notes,
    )


def _load_adapter(place: _Place, adapter: Adapter, base_directory: Path) -> Checkpoint:
    directory, base = place.directory, str(base_directory)
    _check_directory(base_directory)
    config = load_config(base)
    _check_config(base, config, next(iter(getattr(config, "architectures", None) or ["its model"])))
    has_tokenizer = any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = load_tokenizer(str(directory)) if has_tokenizer else load_tokenizer(base)
    # A language model has no head yet, or one of another size: the adapter brings its own.
    heads = {} if config.num_labels == adapter.num_labels else {"num_labels": adapter.num_labels}
    model, info = _load_model(base, ignore_mismatched_sizes=True, **heads)
    _check_complete(base, info, adapter)
    kind = _kind(model)
    return Checkpoint(
        id=place.id,
        revision=place.revision,
        kind=kind,
        architecture=type(model).__name__,
        model=model,
        tokenizer=tokenizer.taken,
        auto_tokenizer=tokenizer.auto,
        tokenizer_notes=tokenizer.notes,
        adapter=_loading(str(directory), "adapter", lambda: adapter.put_on(model)),
    )


def _locate(source: str) -> _Place:
    """A directory as it is; `org/name` or `org/name@revision` downloaded from the hub."""
    directory = Path(source).expanduser()
    if directory.is_dir():
        return _Place(directory, directory.resolve().name)
    match = _HUB_ID.fullmatch(source)
    if directory.exists() or match is None:
        what = "is not a directory" if directory.exists() else "no such directory"
        raise SourceError(f"{source}: {what}; give the directory that holds config.json and model.safetensors")
    snapshot = _download(source, match["repo"], match["revision"])
    return _Place(snapshot, match["repo"], snapshot.name)


def _download(source: str, repo: str, revision: str | None) -> Path:
    """All that a checkpoint is made of, of one commit; no pickles, no code, no other formats of the weights."""
    try:
        snapshot = snapshot_download(repo, revision=revision, allow_patterns=_CHECKPOINT_FILES, ignore_patterns=["*/*"])
    except Exception as error:  # the hub's client raises classes of its own and of its HTTP library
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SourceError(f"{source}: no such directory, and it cannot be had from the hub: {reason}") from error
    return Path(snapshot)


def _check_directory(directory: Path) -> None:
    """Names the usual mistakes before transformers words them."""
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


def sequence_classifier(source: str, config: Any) -> str:
    """The class of transformers that the config names.

    Raises:
        SourceError: it is no reward model of transformers.
    """
    names = list(getattr(config, "architectures", None) or [])
    known = [name for name in names if name.endswith("ForSequenceClassification") and hasattr(transformers, name)]
    if not known:
        remote = ", and its code is in its repository, which is never run" if hasattr(config, "auto_map") else ""
        what = f"is a {names[0]}" if names else "names no architecture"
        raise SourceError(f"{source}: {what}, not a *ForSequenceClassification model of transformers{remote}")
    return str(known[0])


def _check_config(source: str, config: Any, architecture: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise SourceError(f"{source}: its weights are quantized; give the checkpoint before quantization")
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(f"{source}: {architecture} is an encoder-decoder; only decoders and encoders can be exported")


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


def _load_model(source: str, **options: Any) -> tuple[torch.nn.Module, Any]:
    """The model, and what transformers says of its weights."""
    model, info = _loading(
        source,
        "model",
        lambda: transformers.AutoModelForSequenceClassification.from_pretrained(
            source,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        ),
    )
    return model.eval(), info


def _check_complete(source: str, info: Any, adapter: Adapter | None = None) -> None:
    """No weight of the model may be missing, and none of its head left out, unless an adapter brings the head."""
    for problem in ("missing_keys", "mismatched_keys"):
        # A mismatched weight comes with both of its shapes.
        names = sorted(name if isinstance(name, str) else name[0] for name in info[problem])
        if names := [name for name in names if adapter is None or not adapter.brings(name)]:
            word = problem.split("_")[0]
            raise SourceError(
                f"{source}: {len(names)} {word} weights, such as {names[0]}; they would be random numbers. "
                "Is it a reward model's checkpoint, saved whole?"
            )
    if left_out := sorted(name for name in info["unexpected_keys"] if _HEAD.search(name) and adapter is None):
        raise SourceError(
            f"{source}: {left_out[0]} is a weight of the head that transformers' class of this model leaves out, "
            "so the scores would not be the trained ones"
        )


def _kind(model: torch.nn.Module) -> Kind:
    """A decoder's classification head is called `score` and sits on a base model that takes past keys and values."""
    base: Any = model.base_model
    takes_past = "past_key_values" in inspect.signature(base.forward).parameters
    return "causal" if takes_past and isinstance(getattr(model, "score", None), torch.nn.Linear) else "encoder"
