"""Reads a LoRA adapter (PEFT, of a classifier or of a language model) and puts it on its base model.

Knows nothing of tokenizers and of how the base is loaded. Needs peft, which is no part of plaudit's `export` extra.
"""

import dataclasses
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from plaudit_export.checkpoints.config_files import ADAPTER_CONFIG, read_adapter_config
from plaudit_export.checkpoints.formats import VALUE_HEAD
from plaudit_export.checkpoints.loading import LOADING_ERRORS
from plaudit_export.checkpoints.places import base_of
from plaudit_export.checkpoints.weights import check_pickled_head, pickled
from plaudit_export.errors import SourceError, first_line

WEIGHTS = "adapter_model.safetensors"

# How A and B were drawn does not matter once they are saved. Other kinds of start also change the base's weights.
HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")

_PREFIX = "base_model.model."
_PICKLED_ADAPTER = "adapter_model*.bin"
_PICKLED = "pytorch_model.bin"  # where TRL's older wrapper keeps the head of a model with an adapter
_HEAD_WEIGHT = re.compile(r"(^|\.)(score|classifier|classifier\.out_proj)\.weight$")
# Of a value head that was saved among the weights of a language model's adapter.
_VALUE_HEAD_WEIGHT = re.compile(r"^(base_model\.model\.)?(?P<name>v_head\..*)$")


@dataclass(frozen=True)
class Adapter:
    """An adapter that can be merged.

    Attributes:
        directory: where it is.
        base: directory or hub id of the model that it changes.
        revision: of the base on the hub, None where the adapter names none.
        num_labels: heads of the saved head; None where it is an adapter of a language model.
        config: peft's.
        weights: by peft's names.
        value_head: weights of a head that was saved among them, by the head's own names.
    """

    directory: Path
    base: str
    revision: str | None
    num_labels: int | None
    config: Any
    weights: dict[str, torch.Tensor]
    value_head: dict[str, torch.Tensor]

    def brings(self, weight: str) -> bool:
        """Whether a weight of the model comes from the adapter, so that the base may lack it."""
        return f"{_PREFIX}{weight}" in self.weights

    def replaces(self, weight: str) -> bool:
        """Whether a weight of the base's belongs to a layer that the adapter brings whole."""
        return self.brings(f"{weight.rpartition('.')[0]}.weight")

    def put_on(self, model: torch.nn.Module) -> Any:
        """Wrap the model's layers, in place, in layers that add the adapter; returns peft's model around it.

        Raises:
            SourceError: the adapter was not made for this model.
        """
        peft = _import_peft(self.directory)
        self._resize(model)
        wrapper = peft.PeftModelForCausalLM if self.num_labels is None else peft.PeftModelForSequenceClassification
        wrapped = wrapper(model, self.config)
        needed = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        # peft also saves embeddings that were trained or resized.
        _check_fit(self.directory, self.weights, needed, wrapped.state_dict() | needed)
        peft.set_peft_model_state_dict(wrapped, self.weights)
        return wrapped.eval()

    def _resize(self, model: Any) -> None:
        """As many tokens as the adapter was trained with: peft saves embeddings that were resized whole."""
        embeddings = model.get_input_embeddings()
        name = next(name for name, module in model.named_modules() if module is embeddings)
        places = (f"{_PREFIX}{name}.{layer}weight" for layer in ("", "base_layer."))
        saved = next((self.weights[place] for place in places if place in self.weights), None)
        if saved is not None and saved.shape[0] != embeddings.weight.shape[0]:
            model.resize_token_embeddings(saved.shape[0], mean_resizing=False)


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter's config and weights.

    Raises:
        SourceError: peft is not installed, or this adapter cannot be merged right.
    """
    fields = read_adapter_config(directory)
    _check_fields(directory, fields)
    weights = _read_weights(directory)
    value_head = {
        match["name"]: weights.pop(name) for name in list(weights) if (match := _VALUE_HEAD_WEIGHT.match(name))
    }
    if value_head and fields["task_type"] == "SEQ_CLS":
        raise SourceError(
            f"{directory}: {WEIGHTS} holds two heads, that of SEQ_CLS and v_head, and nothing says which one "
            "gives the score; remove the weights of the other head"
        )
    return Adapter(
        directory=directory,
        base=base_of(directory, fields["base_model_name_or_path"]),
        revision=fields.get("revision"),
        num_labels=_num_labels(directory, weights) if fields["task_type"] == "SEQ_CLS" else None,
        config=_peft_config(directory, fields),
        weights=weights,
        value_head=value_head,
    )


def _num_labels(directory: Path, weights: Mapping[str, torch.Tensor]) -> int:
    heads = [weight for name, weight in weights.items() if _HEAD_WEIGHT.search(name)]
    if len(heads) != 1 or heads[0].dim() != 2 or len(heads[0]) == 0:
        raise SourceError(
            f"{directory}: {WEIGHTS} holds no head (score or classifier); train the adapter with task_type "
            "SEQ_CLS, which saves the head with it"
        )
    return int(heads[0].shape[0])


def refuse_headless(directory: Path) -> SourceError:
    """What to say of a language model's adapter without a head."""
    check_pickled_head(directory)
    if (directory / _PICKLED).is_file():
        return pickled(directory, _PICKLED, VALUE_HEAD)
    return SourceError(
        f"{directory}: is an adapter of a language model (task type CAUSAL_LM) without a head: a reward model is one "
        "of SEQ_CLS, such as TRL's RewardTrainer makes, or has its value head beside it, as LLaMA-Factory saves it "
        f"({VALUE_HEAD}); if its score is made of the logits of tokens, name them with --token-logits TOKEN=WEIGHT"
    )


def _check_fields(directory: Path, fields: dict[str, Any]) -> None:
    if fields.get("peft_type") != "LORA":
        raise SourceError(f"{directory}: is a PEFT adapter of type {fields.get('peft_type')}; only LORA can be merged")
    if (task := fields.get("task_type")) not in {"SEQ_CLS", "CAUSAL_LM"}:
        what = f"is an adapter of task type {task}" if task else "is an adapter that names no task type"
        raise SourceError(
            f"{directory}: {what}, not of SEQ_CLS: a reward model is an adapter with a head of its own (score) that "
            "was trained on a *ForSequenceClassification model, such as by TRL's RewardTrainer; or one of CAUSAL_LM "
            "with a value head"
        )
    if (start := fields.get("init_lora_weights", True)) not in HARMLESS_STARTS:
        raise SourceError(
            f"{directory}: init_lora_weights {start!r} changed the base model's weights when training began; convert "
            "it to a plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    path = directory / WEIGHTS
    if not path.is_file():
        if any(directory.glob(_PICKLED_ADAPTER)):
            raise pickled(directory, _PICKLED_ADAPTER, WEIGHTS)
        raise SourceError(f"{directory}: has no {WEIGHTS}")
    try:
        weights: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{directory}: its {WEIGHTS} cannot be loaded: {first_line(error)}") from error
    return {name: weight for name, weight in weights.items() if not _is_twin(name, weights)}


def _is_twin(name: str, weights: Mapping[str, torch.Tensor]) -> bool:
    """Embeddings that were resized and trained are saved by two names, of which peft reads the shorter."""
    short = name.replace(".modules_to_save.", ".")
    return short != name and short in weights and torch.equal(weights[short], weights[name])


def _peft_config(directory: Path, fields: dict[str, Any]) -> Any:
    peft = _import_peft(directory)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)} | {"peft_version"}
    if unknown := sorted(name for name, value in fields.items() if name not in known and value):
        raise SourceError(
            f"{directory}: this version of peft does not know {unknown[0]} of its {ADAPTER_CONFIG}: pip install -U peft"
        )
    try:
        config = peft.LoraConfig.from_pretrained(str(directory))
    except LOADING_ERRORS as error:
        raise SourceError(f"{directory}: peft refuses its {ADAPTER_CONFIG}: {first_line(error)}") from error
    config.inference_mode = True
    return config


def _check_fit(
    directory: Path,
    given: Mapping[str, torch.Tensor],
    needed: Iterable[str],
    places: Mapping[str, torch.Tensor],
) -> None:
    """A weight that peft does not find keeps its start value, and one that it does not know is left out."""
    missing, unknown = sorted(set(needed) - set(given)), sorted(set(given) - set(places))
    resized = sorted(name for name in set(given) & set(places) if given[name].shape != places[name].shape)
    if missing:
        problem = f"lacks {len(missing)} weights, such as {missing[0]}"
    elif unknown:
        problem = f"has {len(unknown)} weights that its base model does not have, such as {unknown[0]}"
    elif resized:
        name = resized[0]
        problem = f"has {name} in shape {tuple(given[name].shape)}, its base model in {tuple(places[name].shape)}"
    else:
        return
    raise SourceError(
        f"{directory}: {WEIGHTS} {problem}; check that the adapter was trained on exactly this base model"
    )


def _import_peft(directory: Path) -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise SourceError(f"{directory}: is a PEFT adapter, and merging it needs peft: pip install peft") from error
