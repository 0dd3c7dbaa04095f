"""Whether a class has every weight and uses every stored one: one that is left out would make the score another.

Reads the headers of safetensors files. Knows nothing of how a model is loaded.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from plaudit_export.checkpoints.formats import VALUE_HEAD
from plaudit_export.errors import SourceError, first_line

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED_MODEL = "pytorch_model*.bin"
_PICKLED_HEAD = "value_head.bin"
# Pickles whose names say that a score is computed with them; pickled optimizers and whole models lie beside many.
_PICKLED = (".bin", ".pt", ".pth")
_NAMES_HEAD = re.compile(r"head|score|classifier|reward|regress", re.IGNORECASE)
# The same weights by the names of the model's makers.
_MAKERS_FILE = re.compile(r"consolidated(\.\d+)?\.safetensors")

# What a classifier has no use for: heads of pretraining (also layers that predict further tokens), a pooler beside the
# head, and buffers that old versions of transformers stored.
_HARMLESS = re.compile(
    r"(^|\.)(lm_head|embed_out|generator_lm_head|(generator|discriminator|lm|mask)_predictions"
    r"|vocab_(transform|layer_norm|projector)|cls\.(predictions|seq_relationship)|pooler\.dense|mtp)\."
    r"|(^|\.)((original_)?inv_freq|(cos|sin)_cached|position_ids|token_type_ids)$"
    r"|\.(attn|attention|self_attn)\.(bias|masked_bias|embed_positions)$"
)
# What classes of other trainers compute a score with. transformers keeps quiet about names that match a list of the
# model's class, and such a list may match one of these by accident.
_OF_A_SCORE = re.compile(
    r"(^|\.)(score|score_head|scores|classifier|reward|reward_head|rm_head|v_head|vhead|value_head|regression_head"
    r"|regression_layer|gating|normalizer)(\.|$)"
)
# Types of safetensors that trained weights can have.
FRACTIONS = re.compile("B?F")


def check_directory(directory: Path) -> None:
    """Names the usual mistakes before transformers words them.

    Raises:
        SourceError: there is no config, or no weights that may be loaded.
    """
    if not (directory / "config.json").is_file():
        raise SourceError(f"{directory}: has no config.json; give the directory of a Hugging Face checkpoint")
    if any(directory.glob("*.safetensors")):
        return
    if any(directory.glob(_PICKLED_MODEL)):
        raise pickled(directory, _PICKLED_MODEL, _ONE_FILE)
    raise SourceError(f"{directory}: has no *.safetensors file")


def check_complete(
    source: str, info: Mapping[str, Any], num_labels: int, brings: Callable[[str], bool] = lambda _: False
) -> None:
    """No weight of the model is missing, or stored in another shape.

    Args:
        source: the directory.
        info: what transformers says of the weights that it loaded.
        num_labels: of the model's config.
        brings: whether an adapter brings a weight.

    Raises:
        SourceError: one is.
    """
    if missing := sorted(name for name in info["missing_keys"] if not brings(name)):
        raise SourceError(
            f"{source}: {len(missing)} missing weights, such as {missing[0]}; they would be random numbers; check "
            "that this is the whole checkpoint of a reward model"
        )
    for name, stored, made in sorted(info["mismatched_keys"]):
        if brings(name):
            continue
        if made[0] == num_labels != stored[0] and stored[1:] == made[1:]:
            labels = {"0": "score"} if stored[0] == 1 else {str(head): f"LABEL_{head}" for head in range(stored[0])}
            raise SourceError(
                f"{source}: the head has {_count(stored[0], 'output')} ({name}), its config.json "
                f"{_count(num_labels, 'label')} (transformers assumes 2 where it names none); set there "
                f'"id2label": {json.dumps(labels)}'
            )
        raise SourceError(
            f"{source}: {name} is stored in shape {tuple(stored)}, but its config.json needs {tuple(made)}; check "
            "that this is the config of these weights"
        )


def check_stored(
    directory: Path,
    class_name: str,
    used: Collection[str],
    unexpected: Iterable[str],
    is_harmless: Callable[[str], bool] = lambda _: False,
    head_file: str | None = None,
) -> list[str]:
    """A note for each file whose weights are stored twice.

    Args:
        directory: of a checkpoint that transformers loaded.
        class_name: of the model, for the message.
        used: names by which the class knows its weights.
        unexpected: names that transformers found and did not use.
        is_harmless: whether a weight that the class does not use has no part in the score, or is the head's.
        head_file: that the head was read from, beside the model's.

    Raises:
        SourceError: a weight is stored that the class does not use, or one of the head's file is of whole numbers.
    """
    check_pickled_head(directory)
    read, others = _files(directory)
    stored = {name for file in read for name in _names(directory / file)}
    hidden = {name for name in stored if _OF_A_SCORE.search(name) and name not in used}
    _refuse_twice(directory, stored)
    _refuse(directory, class_name, "", (name for name in {*unexpected, *hidden} if not is_harmless(name)))
    notes = []
    for file in others:
        if _MAKERS_FILE.fullmatch(file):
            continue
        left_out = (name for name in _names(directory / file) if name not in stored)
        if file == head_file:
            _refuse(directory, class_name, f" of {file}", (name for name in left_out if not is_harmless(name)))
            continue
        _refuse(directory, class_name, f" of {file}", left_out)
        notes.append(f"{file} is not read: the weights are those of {read[0]}")
    if head_file in others:
        _refuse_whole_numbers(directory / head_file)
    return notes


def check_types(directory: Path) -> None:
    """Refuses weights of whole numbers before transformers loads them, which takes them or fails, by its version.

    Raises:
        SourceError: a weight is stored as whole numbers.
    """
    for file in _files(directory)[0]:
        if (directory / file).is_file():
            _refuse_whole_numbers(directory / file)


def check_adapter_files(directory: Path, weights: Collection[str]) -> list[str]:
    """A note where a whole model lies beside an adapter.

    Args:
        directory: of the adapter.
        weights: its files.

    Raises:
        SourceError: a head lies in a file of its own.
    """
    check_pickled_head(directory)
    others = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in weights)
    for name in others:
        if not name.startswith("model"):
            raise SourceError(
                f"{directory}: {name} is in the adapter's directory, but peft does not read it; remove the file if "
                "the score does not need it"
            )
    if not others:
        return []
    return [
        f"{others[0]} beside the adapter is not read: the model is the adapter on its base (for the other, give a "
        "directory without adapter_config.json)"
    ]


def check_pickled_head(directory: Path, left_out: Iterable[str] = ()) -> None:
    """No head lies in a pickle, LLaMA-Factory's or another.

    Args:
        directory: of the checkpoint.
        left_out: names of further files of it, which were not downloaded.

    Raises:
        SourceError: one does, and no other file has it.
    """
    for name in sorted({*left_out, *(path.name for path in directory.iterdir())}):
        path = Path(name)
        if path.parent != Path() or path.suffix not in _PICKLED or not _NAMES_HEAD.search(path.stem):
            continue
        converted = VALUE_HEAD if name == _PICKLED_HEAD else f"{path.stem}.safetensors"
        if not (directory / converted).is_file():
            raise pickled(directory, name, converted)


def pickled(directory: Path, names: str, converted: str) -> SourceError:
    """Says that a file, or those that a pattern names, is never loaded, and how its owner makes one that is."""
    return SourceError(
        f"{directory}: {names} is pickled, and never loaded because a pickle can run code; if you trust it, convert it "
        'there: python -c "import glob, torch, safetensors.torch as s; s.save_file({name: weight.contiguous().clone() '
        f"for file in glob.glob('{names}') for name, weight in torch.load(file, weights_only=True).items()}}, "
        f"'{converted}', {{'format': 'pt'}})\""
    )


def names_in(model: Any) -> set[str]:
    """The model's weights by their names, which may be stored with or without the base model's prefix."""
    prefix = f"{model.base_model_prefix}."
    names = set(model.state_dict())
    return names | {f"{prefix}{name}" for name in names} | {name.removeprefix(prefix) for name in names}


def stored_weights(directory: Path) -> dict[str, Path]:
    """The names of the weights that transformers reads, and the file of each.

    Raises:
        SourceError: a file cannot be read.
    """
    read, _ = _files(directory)
    return {name: directory / file for file in read for name in _names(directory / file)}


def read_weights(files: Mapping[str, Path], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Some of the weights by their names; `files` is what `stored_weights` gives."""
    weights = {}
    for name in names:
        with safe_open(files[name], "pt") as file:
            weights[name] = file.get_tensor(name)
    return weights


def weights_of(file: Path) -> dict[str, Path]:
    """As `stored_weights`, of one file."""
    return dict.fromkeys(_names(file), file)


def _refuse_twice(directory: Path, stored: Collection[str]) -> None:
    """A head that is stored with and without a prefix is two heads, of which transformers takes one."""
    for name in sorted(filter(_OF_A_SCORE.search, stored)):
        rest = name.partition(".")[2]
        if rest in stored and _OF_A_SCORE.search(rest):
            raise SourceError(
                f"{directory}: holds both {rest} and {name}, and nothing says which one gives the score; remove the "
                "other one"
            )


def _refuse_whole_numbers(path: Path) -> None:
    """The weights of a layer that are whole numbers were quantized, and what they were multiplied by is not there."""
    names = [name for name in _names(path) if name.endswith(".weight")]
    with safe_open(path, "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in names}
    if whole := sorted(name for name, type_ in types.items() if not FRACTIONS.match(type_)):
        raise SourceError(
            f"{path.parent}: {whole[0]} of {path.name} is stored as {types[whole[0]]}, so the weights were "
            "quantized; give the checkpoint before quantization"
        )


def _refuse(directory: Path, class_name: str, of_file: str, left_out: Iterable[str]) -> None:
    if names := sorted(name for name in left_out if _OF_A_SCORE.search(name) or not _HARMLESS.search(name)):
        more = f", like {len(names) - 1} more" if len(names) > 1 else ""
        head = " of the head" if _OF_A_SCORE.search(names[0]) else ""
        raise SourceError(
            f"{directory}: {names[0]}{of_file} is a weight{head} that transformers' {class_name} leaves "
            f"out{more}, so the scores would differ from the trained ones; if {class_name} is right without it, "
            "load and save the checkpoint with that class (from_pretrained, save_pretrained)"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _files(directory: Path) -> tuple[list[str], list[str]]:
    """The safetensors files that transformers reads, and the others."""
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if _ONE_FILE in found or not (directory / _INDEX).is_file():
        read = [_ONE_FILE] if _ONE_FILE in found else found
    else:
        try:
            weight_map = json.loads((directory / _INDEX).read_text(encoding="utf-8"))["weight_map"]
            read = sorted({str(Path(file)) for file in weight_map.values()})
            if beyond := [file for file in read if Path(file).name != file]:
                raise SourceError(
                    f"{directory}: its {_INDEX} names {beyond[0]}, which is not in the directory; save the checkpoint "
                    "again"
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SourceError(
                f"{directory}: its {_INDEX} names no files of weights; save the checkpoint again"
            ) from error
    return read, [name for name in found if name not in read]


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path}: cannot be read: {first_line(error)}") from error
