"""The tokenizer that lies on disk: `tokenizer.json` as it is, with what the files beside it say on top.

transformers 5 rebuilds the normalizer and the pre-tokenizer of many checkpoints from the class that it takes a
tokenizer for, so its AutoTokenizer may give other ids than the file, which is what trainers saved. Knows nothing of
models.
"""

import copy
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, processors

from plaudit_export.checkpoints.config_files import TOKENIZER_CONFIG, read_fields

FILE = "tokenizer.json"

_PROBE = "a"


@dataclass(frozen=True)
class LoadedTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        taken: a tokenizer of transformers; gives the ids of `tokenizer.json`.
        auto: AutoTokenizer's, where it is another one.
        notes: a line for each thing that the files beside `tokenizer.json` change in it.
    """

    taken: Any
    auto: Any = None
    notes: tuple[str, ...] = ()


def load_from_files(directory: Path) -> LoadedTokenizer:
    """`tokenizer.json` with the added tokens and the BOS and EOS that tokenizer_config.json asks for.

    Where AutoTokenizer's is built alike, that one is taken, so that the bundle keeps the bytes that it always had.
    Without `tokenizer.json` there is only AutoTokenizer's.

    Raises:
        SourceError: a field of tokenizer_config.json is of another type than it is read as.
        ValueError: a token cannot have the id that tokenizer_config.json gives it.
        ImportError: sentencepiece is missing.
        Exception: transformers or tokenizers cannot load it.
    """
    there = (directory / FILE).is_file()
    config = read_fields(directory, TOKENIZER_CONFIG) if (directory / TOKENIZER_CONFIG).is_file() else {}
    if not there:
        _check_sentencepiece(directory)
    auto = transformers.AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, use_fast=True)
    if not there:
        return LoadedTokenizer(auto)
    backend = Tokenizer.from_file(str(directory / FILE))
    backend.no_truncation()
    backend.no_padding()
    declared = transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))
    notes = (*_add_tokens(backend, declared, config), *_set_ends(backend, declared, config))
    if auto.is_fast and _parts(auto.backend_tokenizer) == _parts(backend):
        return LoadedTokenizer(auto, notes=notes)
    return LoadedTokenizer(_with_backend(auto if auto.is_fast else declared, backend), auto, notes)


def _check_sentencepiece(directory: Path) -> None:
    """Refuse what transformers takes for tiktoken's, and asks for tiktoken, where sentencepiece is missing."""
    models = sorted(directory.glob("*.model"))
    if models and importlib.util.find_spec("sentencepiece") is None:
        raise ImportError(
            f"it is a sentencepiece model ({models[0].name}) without {FILE}, and reading it needs sentencepiece: "
            "pip install sentencepiece protobuf"
        )


def _with_backend(tokenizer: Any, backend: Tokenizer) -> Any:
    """A copy of a tokenizer of transformers that tokenizes as `backend` does.

    A special token that only its class names, and that the vocabulary does not have, is none.
    """
    changed = copy.deepcopy(tokenizer)
    changed._tokenizer = backend  # the only way to keep all else that its class knows
    for name, token in changed.special_tokens_map.items():
        if isinstance(token, str) and backend.token_to_id(token) is None:
            setattr(changed, name, None)
    return changed


def _add_tokens(backend: Tokenizer, declared: Any, config: Mapping[str, Any]) -> list[str]:
    """Tokens that the file lacks, or has with other flags. Where it has one with another id, the file's holds."""
    vocab, flags = backend.get_vocab(), backend.get_added_tokens_decoder()
    tokens = [
        token
        for number, token in sorted(declared.added_tokens_decoder.items())
        if repr(flags.get(number)) != repr(token)
    ]
    backend.add_tokens(tokens)
    names = ", ".join(repr(token.content) for token in tokens)
    notes = [f"{TOKENIZER_CONFIG} adds tokens to {FILE}, or sets their flags: {names}"] if tokens else []
    for number, fields in (config.get("added_tokens_decoder") or {}).items():
        token, actual = fields["content"], backend.token_to_id(fields["content"])
        if actual == int(number):
            continue
        contradiction = f"{TOKENIZER_CONFIG} gives {token!r} the id {number}, {FILE} the id {actual}"
        if token not in vocab:
            raise ValueError(f"{contradiction}, the next one that is free; correct one of them")
        notes.append(f"{contradiction}, which holds")
    return notes


def _set_ends(backend: Tokenizer, declared: Any, config: Mapping[str, Any]) -> list[str]:
    """BOS and EOS around every text where `add_bos_token` and `add_eos_token` say otherwise than the file does."""
    leading, trailing = _ends(backend)
    bos, eos = declared.bos_token, declared.eos_token
    wanted_leading, wanted_trailing = leading, trailing
    if bos is not None and (add_bos := config.get("add_bos_token")) is not None and add_bos != (leading[:1] == [bos]):
        wanted_leading = [bos, *leading] if add_bos else leading[1:]
    if eos is not None and (add_eos := config.get("add_eos_token")) is not None and add_eos != (trailing[-1:] == [eos]):
        wanted_trailing = [*trailing, eos] if add_eos else trailing[:-1]
    if (leading, trailing) == (wanted_leading, wanted_trailing):
        return []
    backend.post_processor = _around(backend, wanted_leading, wanted_trailing)
    said = ", ".join(f"{name} {config[name]}" for name in ("add_bos_token", "add_eos_token") if name in config)
    return [
        f"{TOKENIZER_CONFIG} says {said}: a text becomes {_shown(wanted_leading, wanted_trailing)}, "
        f"by {FILE} alone it would be {_shown(leading, trailing)}"
    ]


def _ends(backend: Tokenizer) -> tuple[list[str], list[str]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    encoding = backend.encode(_PROBE)
    mask = [*encoding.special_tokens_mask, 0]
    num_leading = mask.index(0)
    num_trailing = mask[-2::-1].index(0) if num_leading < len(encoding) else 0
    return encoding.tokens[:num_leading], encoding.tokens[len(encoding) - num_trailing :]


def _around(backend: Tokenizer, leading: list[str], trailing: list[str]) -> processors.PostProcessor:
    """As transformers does it: the second text of a pair has them too, and type 1."""
    single, second = [*leading, "$A", *trailing], [*leading, "$B", *trailing]
    return processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{piece}:1" for piece in second)],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys([*leading, *trailing])],
    )


def _shown(leading: list[str], trailing: list[str]) -> str:
    return " ".join([*leading, "text", *trailing])


def _parts(backend: Tokenizer) -> dict[str, Any]:
    """All that decides which ids a text gets: two tokenizers with equal parts give every text the same ids."""
    whole = Tokenizer.from_str(backend.to_str())
    whole.no_truncation()
    whole.no_padding()
    probes = [whole.encode(_PROBE), whole.encode(_PROBE, _PROBE)]  # show what the post-processor adds
    parts = json.loads(backend.to_str())
    return {
        "added_tokens": parts["added_tokens"],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": _without_offsets(parts["pre_tokenizer"]),
        "model": {name: None if value == "" else value for name, value in parts["model"].items()},
        "ends": [(probe.ids, probe.type_ids) for probe in probes],
    }


def _without_offsets(part: Any) -> Any:
    """Where a token lies in the text changes no id."""
    if isinstance(part, list):
        return [_without_offsets(each) for each in part]
    if isinstance(part, dict):
        return {name: _without_offsets(value) for name, value in part.items() if name != "trim_offsets"}
    return part
