"""Which class of transformers a config names, and what in a config says that a score would be another one.

Loads no weights and no tokenizer.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from plaudit_export.checkpoints.formats import Format
from plaudit_export.errors import SourceError, first_line

# Code of the checkpoint's own for any other Auto class may be what computes its score.
_NO_REWARD_MODELS = frozenset(
    ["AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"]
    + [f"AutoModelFor{task}" for task in ("CausalLM", "MaskedLM", "PreTraining", "QuestionAnswering", "Seq2SeqLM")]
    + ["AutoModelForTokenClassification"]
)
_LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel")
_NORMALIZING = ("do_normalize", "normalize_reward", "normalize_rewards")
_NO_ATTENTION = {"linear_attention", "mamba", "conv", "recurrent", "hybrid"}
_NO_ACTIVATION = {"identity", "none"}
# Files and modules of sentence-transformers. These modules have no weights that a classifier's score could need.
_MODULES, _SENTENCE_TRANSFORMERS = "modules.json", "config_sentence_transformers.json"
_ENCODER = "sentence_bert_config.json"
_WITHOUT_WEIGHTS = {"Transformer", "Pooling", "Normalize", "Dropout"}


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
            f"{source}: is a {names[0]}, a language model, and has no head of a supported reward model "
            "(docs/models.md); if its score is made of the logits of tokens, name the tokens with --token-logits "
            "TOKEN=WEIGHT"
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
        check_normalization(source, config)
    check_numbers(source, config)
    own_classes = () if row is None else row.own_classes
    return _check_own_code(source, config, architecture, own_classes, builtin_class=builtin_class)


def behind_the_head(source: str, config: Any, architecture: str, *, builtin_class: bool) -> list[str]:
    """A note for each thing that other libraries, and pipelines, do to a text or to a head's output.

    Not for the base of an adapter, which has a head of its own.

    Args:
        source: the directory.
        config: of it.
        architecture: the class that is taken.
        builtin_class: what that class computes is right.

    Raises:
        SourceError: it needs code of the checkpoint's own, or weights that the class does not have.
    """
    library = _fields_of(Path(source) / _SENTENCE_TRANSFORMERS)
    return [
        *_activation_notes(activations(config, library)),
        *_text_notes(library, _fields_of(Path(source) / _ENCODER)),
        *_check_pipelines(source, config, architecture, builtin_class=builtin_class),
        *_check_modules(source, architecture, builtin_class=builtin_class),
    ]


def activations(config: Any, library: Mapping[str, Any]) -> dict[str, str]:
    """What is applied to a head's output and changes it, by the field that says so.

    Args:
        config: of the checkpoint.
        library: the fields of sentence-transformers' own file.
    """
    ours = getattr(config, "sentence_transformers", None)
    fields = {
        "sentence_transformers.activation_fn of config.json": ours.get("activation_fn")
        if isinstance(ours, dict)
        else None,
        "sbert_ce_default_activation_function of config.json": getattr(
            config, "sbert_ce_default_activation_function", None
        ),
        f"activation_fn of {_SENTENCE_TRANSFORMERS}": library.get("activation_fn"),
        "function_to_apply of config.json": getattr(config, "function_to_apply", None),
    }
    named = {field: str(value).rpartition(".")[2] for field, value in fields.items() if value}
    return {field: name for field, name in named.items() if name.lower() not in _NO_ACTIVATION}


def has_softmax(config: Any) -> bool:
    """Whether a config says that the heads' outputs go through a softmax."""
    return any(name.lower() == "softmax" for name in activations(config, {}).values())


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
            f"{source}: pad_token_id {pad} of its config.json is not one of the model's {vocab_size} tokens (0 to "
            f"{vocab_size - 1}); set it to the id of the token that the trainer padded with, or to null if that "
            "token is not in the model: then the last token is scored"
        )


def own_code(auto_map: Any) -> dict[str, str]:
    """What an `auto_map` names for each Auto class: code of the checkpoint's repository."""
    entries = auto_map if isinstance(auto_map, dict) else {"every class": auto_map}
    # Of a tokenizer: the slow class and the fast one, of which either may be missing.
    names = {auto: next(filter(None, name), "") if isinstance(name, list) else name for auto, name in entries.items()}
    return {str(auto): str(name) for auto, name in sorted(names.items()) if name}


def tokenizer_notes(directory: Path, *, builtin_class: bool, source: Path | None = None) -> list[str]:
    """A note where a tokenizer has a class of its own: harmless where a tokenizer.json says how it tokenizes.

    Args:
        directory: of its files.
        builtin_class: what transformers' own class computes is right.
        source: how messages name the directory, None for its path.

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
                f"{source or directory}: {asked}: custom code, which is never run, and there is no tokenizer.json; "
                "save a tokenizer.json in this directory, or give --builtin-class if transformers' own class gives "
                "the same tokens"
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
            raise _code_of_its_own(source, asked, architecture)
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


def check_normalization(source: str, config: Any) -> None:
    """Trainers with classes of their own normalize scores after the head; the classes of transformers do not.

    Raises:
        SourceError: the config says that its trainer's class does.
    """
    for field in _NORMALIZING:
        if getattr(config, field, False):
            raise SourceError(
                f"{source}: its config.json says {field}: its trainer normalizes scores after the head, which "
                "transformers' class does not; set it to false to export the raw scores (then --normalize saved takes "
                "mean and std of the config, and --normalize-on FILE those of your texts)"
            )


def _activation_notes(named: Mapping[str, str]) -> list[str]:
    """Scores are what a reward model is trained on, which is the head's output."""
    notes = []
    for field, name in named.items():
        how = "1 / (1 + exp(-score)), as /classify answers" if name.lower() == "sigmoid" else f"{name} of raw scores"
        who = "a pipeline of transformers" if field.startswith("function_to_apply") else "sentence-transformers"
        notes.append(
            f"{field} names {name}, which {who} applies to the head's output; here scores are that output without "
            f"it; to get the activated score, compute {how}"
        )
    return notes


def _text_notes(library: Mapping[str, Any], encoder: Mapping[str, Any]) -> list[str]:
    """What sentence-transformers makes of a text before it is tokenized."""
    name, prompts = library.get("default_prompt_name"), library.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    notes = []
    if prompt:
        notes.append(
            f"{_SENTENCE_TRANSFORMERS} puts the prompt {prompt!r} before every text; texts are scored without "
            "this prompt; to score with it, send it at the start of each text"
        )
    if encoder.get("do_lower_case"):
        notes.append(
            f"{_ENCODER} says do_lower_case: sentence-transformers converts texts to lower case; here texts are "
            "scored as they are; to score them in lower case, send them so"
        )
    return notes


def _check_pipelines(source: str, config: Any, architecture: str, *, builtin_class: bool) -> list[str]:
    """A pipeline of the checkpoint's own makes the score of what the class gives, by code."""
    notes = []
    pipelines = getattr(config, "custom_pipelines", None)
    for task, fields in sorted(pipelines.items()) if isinstance(pipelines, dict) else ():
        classes = fields.get("pt") if isinstance(fields, dict) else None
        named = [str(each) for each in (classes if isinstance(classes, list) else [classes]) if each]
        asked = f"custom_pipelines of the config names {fields.get('impl') if named else fields} for {task}"
        if not builtin_class and not (named and set(named) <= _NO_REWARD_MODELS):
            raise _code_of_its_own(source, asked, architecture)
        notes.append(f"{asked}; that code is not run, the scores are those of transformers' {architecture}")
    return notes


def _check_modules(source: str, architecture: str, *, builtin_class: bool) -> list[str]:
    """sentence-transformers runs these modules one after the other; the classes of transformers are the first alone."""
    modules = _read_json(Path(source) / _MODULES)
    types = [str(module.get("type")) for module in modules or () if isinstance(module, dict)]
    further = [name for name in types if name.rpartition(".")[2] != "Transformer"]
    if not further:
        return []
    # What a language model's logits become is said by --token-logits.
    harmless = {*_WITHOUT_WEIGHTS, *(("LogitScore",) if architecture.endswith(_LANGUAGE_MODEL) else ())}
    weighted = [name for name in further if name.rpartition(".")[2] not in harmless]
    if weighted and not builtin_class:
        raise SourceError(
            f"{source}: {_MODULES} names {weighted[0]} after the encoder, a module of sentence-transformers with "
            f"weights or code of its own, which transformers' {architecture} does not compute; if that class "
            "gives the score without this module, give --builtin-class"
        )
    return [
        f"{_MODULES} names {', '.join(further)}, which sentence-transformers runs after the encoder; the "
        f"scores are those of transformers' {architecture} without these modules"
    ]


def _fields_of(path: Path) -> Mapping[str, Any]:
    fields = _read_json(path)
    return fields if isinstance(fields, dict) else {}


def _read_json(path: Path) -> Any:
    """The content of a file that transformers does not read; None where there is none.

    Raises:
        SourceError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path.parent}: its {path.name} cannot be read: {first_line(error)}") from error


def _code_of_its_own(source: str, asked: str, architecture: str) -> SourceError:
    return SourceError(
        f"{source}: {asked}: custom code of the checkpoint, which is never run; if transformers' "
        f"{architecture} computes the same scores, give --builtin-class"
    )


def _expected(config: Any) -> str:
    kind, name = config.model_type, classifier_of(config)
    if name is None:
        return f"and transformers has no *ForSequenceClassification class for model_type {kind}"
    return f'where a reward model of model_type {kind} has "architectures": ["{name}"]; add it if it was trained as one'
