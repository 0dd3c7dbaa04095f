"""Loads reward models of other trainers' formats: a decoder of transformers, and the head that the format's row names.

Also language models whose score is made of the logits of tokens. Knows nothing of tokenizers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from plaudit_export.checkpoints.adapter import Adapter, refuse_headless
from plaudit_export.checkpoints.architecture import behind_the_head, check_config
from plaudit_export.checkpoints.config_files import CONFIG, read_fields
from plaudit_export.checkpoints.formats import (
    WRAPPER,
    Format,
    Found,
    SavedNormalization,
    recognize,
    saved_normalization,
)
from plaudit_export.checkpoints.heads import HeadedModel, TokenLogitsModel, build_head, num_outputs
from plaudit_export.checkpoints.loading import (
    heed_soft_cap,
    load_config,
    load_model,
    loading,
    network,
    takes_keys_and_values,
)
from plaudit_export.checkpoints.weights import (
    check_complete,
    check_stored,
    names_in,
    read_weights,
    stored_weights,
    weights_of,
)
from plaudit_export.errors import SourceError
from plaudit_service.bundles.bundle import TrainedAt


@dataclass(frozen=True)
class Foreign:
    """A loaded reward model.

    Attributes:
        model: of `heads`.
        architecture: transformers' class below the head.
        format: the row; None for a language model whose logits are heads.
        trained_at: where its head was trained to mean something.
        pooled_before: the head reads the token before the first one of this id; None: the last.
        normalization: that the trainer kept.
        notes: what was decided by loading it, for the user.
    """

    model: HeadedModel | TokenLogitsModel
    architecture: str
    format: Format | None = None
    trained_at: TrainedAt = "end"
    pooled_before: int | None = None
    normalization: SavedNormalization | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """As transformers names the heads of a config that names none."""
        if isinstance(self.model, TokenLogitsModel):
            return [f"id:{token_id}" for token_id in self.model.token_ids]
        return [f"LABEL_{index}" for index in range(num_outputs(self.model.score))]

    @property
    def head(self) -> Literal["linear", "mlp", "token_logits"]:
        """By the manifest's name."""
        if isinstance(self.model, TokenLogitsModel):
            return "token_logits"
        return "mlp" if isinstance(self.model.score, torch.nn.Sequential) else "linear"


def load_foreign(directory: Path, found: Found, *, builtin_class: bool) -> Foreign:
    """Load the decoder and the head of a row.

    Raises:
        SourceError: they are not whole, or more is stored than the format has.
    """
    source, raw, row = str(directory), read_fields(directory, CONFIG), found.format
    config = _config(source, raw, row)
    backbone_class = _class_of(source, transformers.MODEL_MAPPING, config)
    notes = check_config(source, config, backbone_class.__name__, builtin_class=builtin_class, row=row)
    notes += behind_the_head(source, config, backbone_class.__name__, builtin_class=builtin_class)
    stored = stored_weights(directory)
    renamed = _renaming(backbone_class.base_model_prefix, stored)
    backbone, info = load_model(transformers.AutoModel, source, config, key_mapping=renamed)
    check_complete(source, info, config.num_labels)
    unexpected = [name for name in info["unexpected_keys"] if not found.owns(name)]
    notes += check_stored(
        directory, backbone_class.__name__, names_in(backbone), unexpected, found.owns, head_file=row.file
    )
    heads = stored if row.file is None else weights_of(directory / row.file)
    beside = read_weights(stored, [name for name in stored if name.removeprefix(WRAPPER) in row.beside])
    return _headed(source, backbone, found, raw, read_weights(heads, filter(found.in_head, heads)), beside, notes)


def load_adapted(
    directory: Path, adapter: Adapter, base_directory: Path, *, builtin_class: bool
) -> tuple[Foreign, Any]:
    """Load a language model with its adapter on it, below the head that lies beside or in the adapter.

    Returns:
        The reward model, and peft's model around the language model.

    Raises:
        SourceError: there is no such head, or adapter and base do not fit.
    """
    source = str(directory)
    raw = read_fields(base_directory, CONFIG)
    found = recognize(source, raw, adapter.value_head, [path.name for path in directory.iterdir()])
    if found is None:
        raise refuse_headless(directory)
    language_model, notes = _load_language_model(base_directory, adapter, builtin_class=builtin_class)
    wrapped = loading(source, "adapter", lambda: adapter.put_on(language_model))
    row = found.format
    file = None if row.file is None else weights_of(directory / row.file)
    weights = adapter.value_head if file is None else read_weights(file, file)
    return _headed(source, network(language_model), found, raw, weights, {}, notes), wrapped


def load_token_logits(
    directory: Path, token_ids: Sequence[int], adapter: Adapter | None, base_directory: Path, *, builtin_class: bool
) -> tuple[Foreign, Any]:
    """Load a language model whose logits of some tokens are its heads.

    Args:
        directory: of the language model, or of the adapter.
        token_ids: of the tokens.
        adapter: on it, or None.
        base_directory: of the language model.
        builtin_class: the class of transformers is right.

    Returns:
        The reward model, and peft's model around the language model, None without an adapter.

    Raises:
        SourceError: it is no language model, or not whole.
    """
    language_model, notes = _load_language_model(base_directory, adapter, builtin_class=builtin_class)
    wrapped = None
    if adapter is not None:
        wrapped = loading(str(directory), "adapter", lambda: adapter.put_on(language_model))
    num_rows = int(language_model.get_output_embeddings().weight.shape[0])
    if beyond := [token_id for token_id in token_ids if not 0 <= token_id < num_rows]:
        raise SourceError(f"--token-logits: id {beyond[0]}, and the head of {directory} has {num_rows} tokens")
    model = TokenLogitsModel(language_model, token_ids)
    return Foreign(model, type(language_model).__name__, notes=tuple(notes)), wrapped


def _load_language_model(directory: Path, adapter: Adapter | None, *, builtin_class: bool) -> tuple[Any, list[str]]:
    source = str(directory)
    config = load_config(source)
    causal_class = _class_of(source, transformers.MODEL_FOR_CAUSAL_LM_MAPPING, config)
    notes = check_config(source, config, causal_class.__name__, builtin_class=builtin_class)
    if adapter is None:
        notes += behind_the_head(source, config, causal_class.__name__, builtin_class=builtin_class)
    model, info = load_model(transformers.AutoModelForCausalLM, source, config)
    check_complete(source, info, config.num_labels, adapter.brings if adapter else lambda _: False)
    notes += check_stored(directory, causal_class.__name__, names_in(model), info["unexpected_keys"])
    _check_decoder(source, network(model))
    return model, [*notes, *heed_soft_cap(model)]


def _headed(
    source: str,
    backbone: Any,
    found: Found,
    raw: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    beside: Mapping[str, torch.Tensor],
    notes: Sequence[str],
) -> Foreign:
    """The reward model of these parts: head by the stored names of its weights, and what the format keeps beside it."""
    _check_decoder(source, backbone)
    row, text_config = found.format, backbone.config.get_text_config()
    named = {name: weight for stored, weight in weights.items() if (name := found.in_head(stored))}
    unknown = sorted(set(weights) - {stored for stored in weights if found.in_head(stored)})
    if unknown:
        raise SourceError(f"{source}: {unknown[0]} of {row.file} is not a weight of the head {found.head}")
    score = build_head(source, found.head, named, text_config.hidden_size)
    trained_at = dict(row.num_outputs or {}).get(num_outputs(score), None if row.num_outputs else "end")
    if trained_at is None:
        known = " or ".join(str(number) for number, _ in row.num_outputs or ())
        raise SourceError(
            f"{source}: the head {found.head} has {num_outputs(score)} labels, supported are {known}; nothing "
            "says what more labels mean for a token or a step"
        )
    pooled_before = found.pooled_before(text_config)
    numbers = {name.removeprefix(WRAPPER): float(value) for name, value in beside.items() if value.numel() == 1}
    return Foreign(
        model=HeadedModel(backbone, score, pooled_before),
        architecture=type(backbone).__name__,
        format=row,
        trained_at=trained_at,
        pooled_before=pooled_before,
        normalization=saved_normalization(source, row, raw, numbers),
        notes=(*notes, *heed_soft_cap(backbone)),
    )


def _config(source: str, raw: Mapping[str, Any], row: Format) -> Any:
    """The config as transformers' own model type, where the format gives the type another name."""
    model_type = dict(row.model_types).get(str(raw.get("model_type")))
    if model_type is None:
        return load_config(source)
    fields = {name: value for name, value in raw.items() if name != "model_type"}
    return loading(source, "config", lambda: transformers.AutoConfig.for_model(model_type, **fields))


def _class_of(source: str, mapping: Any, config: Any) -> Any:
    try:
        return mapping[type(config)]
    except KeyError as error:
        raise SourceError(f"{source}: transformers has no decoder for its model_type {config.model_type}") from error


def _check_decoder(source: str, backbone: Any) -> None:
    takes_past = takes_keys_and_values(source, backbone)
    fills_masks = type(backbone.config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if not takes_past or (fills_masks and not getattr(backbone.config, "is_decoder", False)):
        raise SourceError(
            f"{source}: {type(backbone).__name__} is not a decoder, but a head of this format reads one token of "
            "a decoder"
        )


def _renaming(prefix: str, stored: Iterable[str]) -> dict[str, str]:
    """What turns the stored names of the backbone's weights into its own: nothing, or the prefix of another trainer."""
    for other in (f"{WRAPPER}{prefix}.", "transformer."):
        if other != f"{prefix}." and any(name.startswith(other) for name in stored):
            return {f"^{re.escape(other)}": ""}
    return {}
