"""Loads a reward model's checkpoint: safetensors, a fast tokenizer, and no code of its own.

Knows nothing of graphs and bundles.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from plaudit_export.checkpoints.adapter import WEIGHTS, Adapter, read_adapter
from plaudit_export.checkpoints.architecture import (
    behind_the_head,
    check_config,
    classifier_of,
    normalizes_not,
    sequence_classifier,
    tokenizer_notes,
)
from plaudit_export.checkpoints.config_files import CONFIG, is_adapter, read_fields
from plaudit_export.checkpoints.foreign import Foreign, load_adapted, load_foreign, load_token_logits
from plaudit_export.checkpoints.formats import VALUE_HEAD, SavedNormalization, recognize, saved_normalization
from plaudit_export.checkpoints.loading import (
    LOADING_ERRORS,
    heed_soft_cap,
    load_config,
    load_model,
    loading,
    network,
    takes_keys_and_values,
)
from plaudit_export.checkpoints.places import Place, locate
from plaudit_export.checkpoints.pooling import say_pad, settle_adapters_pad
from plaudit_export.checkpoints.tokenizer_file import (
    FILE,
    LoadedTokenizer,
    adapters_tokenizer,
    describe_parts,
    load_from_files,
    names_special_tokens,
)
from plaudit_export.checkpoints.weights import (
    check_adapter_files,
    check_complete,
    check_directory,
    check_pickled_head,
    check_stored,
    names_in,
    stored_weights,
)
from plaudit_export.errors import ExportError, SourceError, first_line
from plaudit_export.quiet import quiet
from plaudit_export.recipes.named_tokens import named_token
from plaudit_export.recipes.on_disk import Named, recipe_on_disk

Kind = Literal["causal", "encoder", "plain"]


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
        foreign: of a format that transformers has no class for, None where `model` is of its classes.
        kept: mean and deviation that the config keeps beside a class of transformers.
        adapter: peft's model around `model`, None where there is no adapter. `model` adds it as it computes, until
            `merge_adapter`.
        trained_by: the recipe of its texts that the files beside it name, None where they name none.
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
    foreign: Foreign | None = None
    kept: SavedNormalization | None = None
    adapter: Any = None
    trained_by: Named | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The name of each head. A wrapper around a text model has them in its own config."""
        if self.foreign is not None:
            return self.foreign.labels
        config: Any = self.model.config
        return [str(config.id2label[index]) for index in range(config.num_labels)]

    @property
    def is_encoder(self) -> bool:
        """Whether the model sees the whole text at once; of a graph, whether its class does."""
        return (_kind(self.id, self.model) if self.kind == "plain" else self.kind) == "encoder"

    @property
    def named_recipe(self) -> Named | None:
        """The recipe of its trainer: the format's, else the one that the files name; None: nothing names one."""
        row = None if self.foreign is None else self.foreign.format
        if row is not None and row.recipe is not None:
            return Named(row.recipe, f"its format is that of {row.name}").although(self.trained_by)
        return self.trained_by

    @property
    def saved_normalization(self) -> SavedNormalization | None:
        """The mean and the deviation that the trainer kept."""
        return self.kept if self.foreign is None else self.foreign.normalization

    @property
    def format_name(self) -> str | None:
        """Whose format the reward model is of, None for transformers' own."""
        row = None if self.foreign is None else self.foreign.format
        return None if row is None else row.name

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


def load_checkpoint(
    source: str,
    *,
    builtin_class: bool = False,
    pad_token: str | None = None,
    token_logits: Sequence[str] = (),
    copies_in: Path | None = None,
) -> Checkpoint:
    """Load a directory or a hub id in float32; of an adapter's directory, the base model with the adapter on it.

    Args:
        source: a directory, or a hub id.
        builtin_class: transformers' class is right, also where the config names code of the checkpoint's own.
        pad_token: what the trainer padded with, "" for nothing; None: as the checkpoint tells.
        token_logits: tokens of a language model whose logits are the heads, `id:N` for the one of id N.
        copies_in: as in `load_model`, of a classifier that is saved whole.

    Raises:
        SourceError: one line that says what is wrong with it.
    """
    place = locate(source)
    adapter, base_directory = None, place.directory
    unseen = _unseen_pickles(place)
    if is_adapter(place.directory):
        with quiet():
            adapter = read_adapter(place.directory)
        base = locate(adapter.base if adapter.revision is None else f"{adapter.base}@{adapter.revision}")
        base_directory = base.directory
        unseen += _unseen_pickles(base)
    with quiet():
        check_directory(base_directory)
        if token_logits:
            checkpoint = _load_token_logits(place, adapter, base_directory, token_logits, builtin_class=builtin_class)
        elif adapter is None:
            checkpoint = _load_whole(place, builtin_class=builtin_class, copies_in=copies_in)
        elif adapter.num_labels is None:
            checkpoint = _load_adapted(place, adapter, base_directory, builtin_class=builtin_class)
        else:
            checkpoint = _load_adapter(place, adapter, base_directory, builtin_class=builtin_class)
    if pad_token is not None:
        if checkpoint.kind != "causal":
            raise SourceError(
                f"--pad-token: {source} is not a decoder, and an encoder's score does not depend on the pad token; "
                "leave --pad-token out"
            )
        if checkpoint.foreign is not None:
            raise SourceError(
                f"--pad-token: the head of {source} reads one fixed token, whatever the pad token is; leave "
                "--pad-token out"
            )
        say_pad(source, checkpoint.model, checkpoint.tokenizer, pad_token)
    notes = (*checkpoint.notes, *unseen)
    return replace(checkpoint, trained_by=recipe_on_disk(place.directory), notes=notes)


def _unseen_pickles(place: Place) -> list[str]:
    """Refuse a head in a file of the hub's that is never downloaded; a note where that cannot be known."""
    check_pickled_head(place.directory, place.left_out or ())
    if place.left_out is not None:
        return []
    return [
        f"the hub cannot be reached, so only the cached files of {place.id} were checked, and a head in a "
        "pickle file would be missed; export the checkpoint once with access to the hub"
    ]


def _load_whole(place: Place, *, builtin_class: bool, copies_in: Path | None) -> Checkpoint:
    source = str(place.directory)
    check_pickled_head(place.directory)
    files = [path.name for path in place.directory.iterdir()]
    raw = read_fields(place.directory, CONFIG)
    found = recognize(source, raw, stored_weights(place.directory), files)
    if found is not None:
        foreign = load_foreign(place.directory, found, builtin_class=builtin_class)
        tokenizer, notes = _tokenizer_of(place.directory, place.directory, builtin_class=builtin_class)
        return _foreign(place, foreign, tokenizer, [*foreign.notes, *notes])
    config = load_config(source)
    architecture = sequence_classifier(source, config)
    notes = check_config(source, config, architecture, builtin_class=builtin_class)
    notes += behind_the_head(source, config, architecture, builtin_class=builtin_class)
    notes += tokenizer_notes(place.directory, builtin_class=builtin_class)
    tokenizer = load_tokenizer(source)
    model, info = load_model(transformers.AutoModelForSequenceClassification, source, config, copies_in=copies_in)
    check_complete(source, info, model.config.num_labels)
    if (taken := type(model).__name__) != architecture:
        notes.append(
            f"architectures names {architecture}, and model_type {config.model_type}; the model is what transformers "
            f"makes of the latter, {taken}"
        )
    unused = normalizes_not(config)
    notes += check_stored(
        place.directory,
        taken,
        names_in(model),
        info["unexpected_keys"],
        lambda name: unused and name.startswith("normalizer."),
    )
    return Checkpoint(
        id=place.id,
        revision=place.revision,
        kind=_kind(source, model),
        architecture=taken,
        model=model,
        tokenizer=tokenizer.taken,
        auto_tokenizer=tokenizer.auto,
        tokenizer_notes=tokenizer.notes,
        kept=saved_normalization(source, None, raw, {}),
        notes=(*notes, *heed_soft_cap(model)),
    )


def _load_adapter(place: Place, adapter: Adapter, base_directory: Path, *, builtin_class: bool) -> Checkpoint:
    directory, base = place.directory, str(base_directory)
    config = load_config(base)
    architecture = classifier_of(config)
    if architecture is None:
        raise SourceError(f"{base}: transformers has no *ForSequenceClassification class for its {config.model_type}")
    notes = check_config(base, config, architecture, builtin_class=builtin_class)
    notes += check_adapter_files(directory, [WEIGHTS])
    tokenizer, notes_of_tokenizer = _tokenizer_of(directory, base_directory, builtin_class=builtin_class)
    notes += notes_of_tokenizer
    # A language model has no head yet, or one of another size: the adapter brings its own.
    if config.num_labels != adapter.num_labels:
        config.num_labels = adapter.num_labels
    model, info = load_model(transformers.AutoModelForSequenceClassification, base, config)
    check_complete(base, info, adapter.num_labels or 1, adapter.brings)
    unexpected = info["unexpected_keys"]
    pretrained = _names_of(base, config) if unexpected else set()
    notes += check_stored(
        base_directory,
        architecture,
        names_in(model),
        unexpected,
        lambda name: name in pretrained or adapter.replaces(name),
    )
    notes += heed_soft_cap(model)
    kind = _kind(base, model)  # before the adapter wraps the head
    wrapped = loading(str(directory), "adapter", lambda: adapter.put_on(model))
    if kind == "causal":
        notes += settle_adapters_pad(model, tokenizer.taken, has_tokenizer=names_special_tokens(directory))
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


def _load_adapted(place: Place, adapter: Adapter, base_directory: Path, *, builtin_class: bool) -> Checkpoint:
    notes = check_adapter_files(place.directory, [WEIGHTS, VALUE_HEAD])
    foreign, wrapped = load_adapted(place.directory, adapter, base_directory, builtin_class=builtin_class)
    tokenizer, notes_of_tokenizer = _tokenizer_of(place.directory, base_directory, builtin_class=builtin_class)
    return _foreign(place, foreign, tokenizer, [*notes, *foreign.notes, *notes_of_tokenizer], wrapped)


def _load_token_logits(
    place: Place, adapter: Adapter | None, base_directory: Path, tokens: Sequence[str], *, builtin_class: bool
) -> Checkpoint:
    if adapter is not None and adapter.num_labels is not None:
        raise SourceError(f"--token-logits: {place.directory} is an adapter with a head of its own")
    notes = [] if adapter is None else check_adapter_files(place.directory, [WEIGHTS])
    tokenizer, notes_of_tokenizer = _tokenizer_of(place.directory, base_directory, builtin_class=builtin_class)
    source = str(place.directory)
    token_ids = [
        named_token(source, tokenizer.taken, token, flag="--token-logits", by_id="id:N=WEIGHT") for token in tokens
    ]
    foreign, wrapped = load_token_logits(
        place.directory, token_ids, adapter, base_directory, builtin_class=builtin_class
    )
    return _foreign(place, foreign, tokenizer, [*notes, *foreign.notes, *notes_of_tokenizer], wrapped)


def _foreign(
    place: Place, foreign: Foreign, tokenizer: LoadedTokenizer, notes: Sequence[str], wrapped: Any = None
) -> Checkpoint:
    return Checkpoint(
        id=place.id,
        revision=place.revision,
        kind="causal",
        architecture=foreign.architecture,
        model=foreign.model,
        tokenizer=tokenizer.taken,
        auto_tokenizer=tokenizer.auto,
        tokenizer_notes=tokenizer.notes,
        foreign=foreign,
        adapter=wrapped,
        notes=tuple(notes),
    )


def _tokenizer_of(directory: Path, base_directory: Path, *, builtin_class: bool) -> tuple[LoadedTokenizer, list[str]]:
    """An adapter's tokenizer, or a checkpoint's that is its own base, and what is to be told of it."""
    with adapters_tokenizer(directory, base_directory) as home:
        notes = tokenizer_notes(home, builtin_class=builtin_class, source=directory)
        if home not in (directory, base_directory):
            notes.append(
                f"the adapter's directory has only {describe_parts(directory)} of a tokenizer; the rest is taken from "
                "the base model (to use the trainer's tokenizer, save all of it in the adapter's directory)"
            )
        return load_tokenizer(str(base_directory if home == base_directory else directory), home), notes


def load_tokenizer(source: str, home: Path | None = None) -> LoadedTokenizer:
    """The fast tokenizer of a directory: its `tokenizer.json`, whatever class transformers takes it for.

    Args:
        source: the directory, as messages name it.
        home: where the files are, None for `source`.

    Raises:
        SourceError: it has none.
    """
    loaded = loading(source, "tokenizer", lambda: load_from_files(home or Path(source)))
    if not getattr(loaded.taken, "is_fast", False):
        raise SourceError(f"{source}: its tokenizer ({type(loaded.taken).__name__}) has no fast form ({FILE})")
    if loaded.taken.backend_tokenizer.get_vocab_size(with_added_tokens=False) == 0:
        raise SourceError(f"{source}: has no tokenizer; save it next to the model (tokenizer.save_pretrained)")
    return loaded


def _names_of(source: str, config: Any) -> set[str]:
    """The weights of the class that a base model's config names: its head has no part in an adapter's score."""
    own: Any = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    is_model = inspect.isclass(own) and issubclass(own, transformers.PreTrainedModel)
    if not is_model:
        return set()
    with torch.device("meta"):
        return set(loading(source, "model", lambda: own(config)).state_dict())


def _kind(source: str, model: torch.nn.Module) -> Kind:
    """A decoder's classification head is called `score` and sits on a base model that takes past keys and values."""
    has_score = isinstance(getattr(model, "score", None), torch.nn.Linear)
    return "causal" if has_score and takes_keys_and_values(source, network(model)) else "encoder"
