"""Which class of transformers a config names, and what in a config says that a score would be another one.

Loads no weights and no tokenizer.
"""

import json
from pathlib import Path
from typing import Any

import transformers

from plaudit_export.checkpoints.formats import Format
from plaudit_export.errors import SourceError

# Code of the checkpoint's own for any other Auto class may be what computes its score.
_NO_REWARD_MODELS = frozenset(
    ["AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"]
    + [f"AutoModelFor{task}" for task in ("CausalLM", "MaskedLM", "PreTraining", "QuestionAnswering", "Seq2SeqLM")]
    + ["AutoModelForTokenClassification"]
)
_LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel")
_NORMALIZING = ("do_normalize", "normalize_reward")
_NO_ATTENTION = {"linear_attention", "mamba", "conv", "recurrent", "hybrid"}


def sequence_classifier(source: str, config: Any) -> str:
    """The class of transformers that the config names.

    Raises:
        SourceError: it is no reward model of transformers.
    """
    names = [str(name) for name in getattr(config, "architectures", None) or []]
    known = [name for name in names if name.endswith("ForSequenceClassification") and hasattr(transformers, name)]
    if known:
        return str(known[0])
    if not names:
        raise SourceError(f"{source}: its config.json has no architectures, {_expected(config)}")
    if any(name.endswith(_LANGUAGE_MODEL) for name in names):
        raise SourceError(
            f"{source}: is a {names[0]}, a language model, and has no head of a reward model that is known "
            "(docs/models.md); if its score is made of the logits of tokens, name them with --token-logits TOKEN=WEIGHT"
        )
    remote = ", and its code is in its repository, which is never run" if hasattr(config, "auto_map") else ""
    raise SourceError(f"{source}: is a {names[0]}, not a *ForSequenceClassification model of transformers{remote}")


def classifier_of(config: Any) -> str | None:
    """The *ForSequenceClassification class that transformers has for a config, None where it has none."""
    try:
        return str(transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__)
    except KeyError:
        return None


def check_config(
    source: str, config: Any, architecture: str, *, builtin_class: bool, row: Format | None = None
) -> list[str]:
    """A note for each thing in the config of a checkpoint that asks for code which is not run.

    Args:
        source: the directory.
        config: of it.
        architecture: the class that is taken.
        builtin_class: the user says that transformers' class is right, also where the checkpoint has its own.
        row: of the format of another trainer, which states what the class of that trainer computes.

    Raises:
        SourceError: the checkpoint cannot be exported, or computes its score by more than that class.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise SourceError(f"{source}: its weights are quantized; give the checkpoint before quantization")
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(f"{source}: {architecture} is an encoder-decoder; only decoders and encoders can be exported")
    _check_layers(source, config, architecture)
    if row is None or row.normalizing is None:
        _check_normalization(source, config)
    check_numbers(source, config)
    own_classes = () if row is None else row.own_classes
    return _check_own_code(source, config, architecture, own_classes, builtin_class=builtin_class)


def check_numbers(source: str, config: Any) -> None:
    """The pad token is one of the model's tokens, or there is none; labels are numbered from 0.

    Raises:
        SourceError: one is another number.
    """
    if sorted(config.id2label) != list(range(config.num_labels)):
        heads = ", ".join(map(str, config.id2label))
        raise SourceError(f"{source}: id2label of its config.json names the heads {heads}; number them from 0 on")
    text_config = config.get_text_config()
    pad, vocab_size = getattr(text_config, "pad_token_id", None), getattr(text_config, "vocab_size", None)
    if pad is not None and vocab_size is not None and pad not in range(vocab_size):
        raise SourceError(
            f"{source}: pad_token_id {pad} of its config.json is none of the model's {vocab_size} tokens (0 to "
            f"{vocab_size - 1}); set it to the id of the token that the trainer padded with, or to null if that token "
            "is not in the model: then the last token is scored"
        )


def own_code(auto_map: Any) -> dict[str, str]:
    """What an `auto_map` names for each Auto class: code of the checkpoint's repository."""
    entries = {"every class": auto_map} if isinstance(auto_map, str) else auto_map if isinstance(auto_map, dict) else {}
    # Of a tokenizer: the slow class and the fast one, of which either may be missing.
    names = {auto: next(filter(None, name), "") if isinstance(name, list) else name for auto, name in entries.items()}
    return {str(auto): str(name) for auto, name in sorted(names.items()) if name}


def tokenizer_notes(directory: Path, *, builtin_class: bool) -> list[str]:
    """A note where a tokenizer has a class of its own: harmless where a tokenizer.json says how it tokenizes.

    Raises:
        SourceError: there is none.
    """
    try:
        fields = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(fields, dict):  # the tokenizer's loading says what is wrong with it
        return []
    whole = (directory / "tokenizer.json").is_file()
    taken = "tokenizer.json" if whole else "transformers' own class"
    notes = []
    for name in own_code(fields.get("auto_map")).values():
        asked = f"auto_map of tokenizer_config.json names {name}"
        if not whole and not builtin_class:
            raise SourceError(
                f"{directory}: {asked}: code of its own, which is never run, and there is no tokenizer.json; "
                "save one beside it, or say with --builtin-class that transformers' own class gives the same tokens"
            )
        notes.append(f"{asked}; that code is not run, the tokens are those of {taken}")
    return notes


def normalizes_not(config: Any) -> bool:
    """Whether the config says that a stored normalizer is not used."""
    return any(getattr(config, field, None) is False for field in _NORMALIZING)


def _check_own_code(
    source: str, config: Any, architecture: str, own_classes: tuple[str, ...], *, builtin_class: bool
) -> list[str]:
    notes = []
    for auto, name in own_code(getattr(config, "auto_map", None)).items():
        asked = f"auto_map of the config names {name} for {auto}"
        own_class = name.rsplit(".", 1)[-1]
        is_known = builtin_class or own_class in own_classes
        if not is_known and (auto not in _NO_REWARD_MODELS or own_class == architecture):
            raise SourceError(
                f"{source}: {asked}: code of the checkpoint's own, which is never run; if transformers' "
                f"{architecture} computes the same scores, say so with --builtin-class"
            )
        notes.append(f"{asked}; that code is not run, the scores are those of transformers' {architecture}")
    return notes


def _check_layers(source: str, config: Any, architecture: str) -> None:
    text_config = config.get_text_config()
    types = {
        str(each) for field in ("layer_types", "layers_block_type") for each in getattr(text_config, field, None) or ()
    }
    stateful = getattr(getattr(transformers, architecture, None), "_is_stateful", False)
    if stateful or types & _NO_ATTENTION:
        raise SourceError(
            f"{source}: {architecture}: hybrid or linear attention is not supported; every layer of a decoder has to "
            "keep keys and values"
        )


def _check_normalization(source: str, config: Any) -> None:
    """Trainers with classes of their own normalize scores after the head; the classes of transformers do not."""
    for field in _NORMALIZING:
        if getattr(config, field, False):
            raise SourceError(
                f"{source}: its config.json says {field}: its trainer normalizes scores after the head, which "
                "transformers' class does not; set it to false to export the raw scores (--normalize-on gives them a "
                "mean and a deviation)"
            )


def _expected(config: Any) -> str:
    kind, name = config.model_type, classifier_of(config)
    if name is None:
        return f"and transformers has no *ForSequenceClassification class for model_type {kind}"
    return f'where a reward model of model_type {kind} has "architectures": ["{name}"]; add it if it was trained as one'
