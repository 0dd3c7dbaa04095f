"""The tokenizer that lies on disk: `tokenizer.json` as it is, with what the files beside it say on top.

transformers 5 rebuilds the normalizer and the pre-tokenizer of many checkpoints from the class that it takes a
tokenizer for, so its AutoTokenizer may give other ids than the file, which is what trainers saved. Knows nothing of
models.
"""

import copy
import importlib.util
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, processors

from plaudit_export.checkpoints.config_files import TOKENIZER_CONFIG, read_fields
from plaudit_export.errors import SourceError, first_line

FILE = "tokenizer.json"

_NAMES = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_VOCABULARY = (FILE, "vocab.json", "vocab.txt", "merges.txt", "*.model")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")


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
    Without `tokenizer.json` there is only AutoTokenizer's; with it, AutoTokenizer may fail.

    Raises:
        SourceError: a field of tokenizer_config.json is of another type than it is read as.
        ValueError: a token cannot have the id that another file gives it, or a field is of another type.
        ImportError: sentencepiece is missing.
        Exception: transformers or tokenizers cannot load it.
    """
    there = (directory / FILE).is_file()
    config = read_fields(directory, TOKENIZER_CONFIG) if (directory / TOKENIZER_CONFIG).is_file() else {}
    if not there:
        _check_sentencepiece(directory)
        return LoadedTokenizer(_auto_tokenizer(directory))
    backend = Tokenizer.from_file(str(directory / FILE))
    backend.no_truncation()
    backend.no_padding()
    declared = transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))
    named, added = _read(directory / _NAMES), _read(directory / _ADDED)
    notes = [
        *_add_tokens(backend, declared, config, added),
        *_set_ends(backend, declared, config),
        *_named_twice(declared, config, named),
    ]
    try:
        auto = _auto_tokenizer(directory)
    except Exception as error:  # noqa: BLE001  # code of its own, a class that is not installed, and what else it raises
        notes.append(f"AutoTokenizer cannot load the tokenizer ({first_line(error)}); the tokens are those of {FILE}")
        return LoadedTokenizer(_with_backend(declared, backend), notes=tuple(notes))
    if auto.is_fast and _parts(auto.backend_tokenizer) == _parts(backend):
        return LoadedTokenizer(auto, notes=tuple(notes))
    return LoadedTokenizer(_with_backend(auto if auto.is_fast else declared, backend), auto, tuple(notes))


@contextmanager
def adapters_tokenizer(directory: Path, base: Path) -> Iterator[Path]:
    """Where an adapter's tokenizer is: its own directory, the base's where it has none, or one of the files of both.

    A vocabulary beside a tokenizer_config.json is a tokenizer. Where the adapter has less, its files hold, and what
    they do not say is the base's.

    Raises:
        SourceError: a file of one of them cannot be read.
    """
    vocabulary = _present(directory, _VOCABULARY)
    if directory == base or not _present(directory, (*_VOCABULARY, TOKENIZER_CONFIG, _NAMES, _ADDED, *_TEMPLATES)):
        yield base
    elif vocabulary and (directory / TOKENIZER_CONFIG).is_file():
        yield directory
    else:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                _lay_over(directory, base, Path(scratch))
            except (OSError, ValueError, RecursionError) as error:
                raise SourceError(
                    f"{directory}: its tokenizer cannot be merged into that of {base}: {error}"
                ) from error
            yield Path(scratch)


def names_special_tokens(directory: Path) -> bool:
    """Whether a directory has a file that names the special tokens of a tokenizer, the pad token among them."""
    return bool(_present(directory, (TOKENIZER_CONFIG, _NAMES)))


def describe_parts(directory: Path) -> str:
    """The files that a directory has of a tokenizer."""
    return ", ".join(_present(directory, (*_VOCABULARY, TOKENIZER_CONFIG, _NAMES, _ADDED, *_TEMPLATES)))


def _lay_over(directory: Path, base: Path, home: Path) -> None:
    """Put the adapter's files over the base's: vocabularies whole, the special tokens name by name, templates whole."""
    config, named = _read(directory / TOKENIZER_CONFIG), _read(directory / _NAMES)
    of_base = ["config.json"]
    if not _present(directory, _VOCABULARY):
        of_base += [*_VOCABULARY, _ADDED]
    if not config and not named:
        of_base.append(_NAMES)
    if not config.get("chat_template") and not _present(directory, _TEMPLATES):
        of_base += _TEMPLATES
    for source, patterns in ((base, of_base), (directory, (*_VOCABULARY, _NAMES, _ADDED, *_TEMPLATES))):
        for name in _present(source, patterns):
            (home / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, home / name)
    (home / TOKENIZER_CONFIG).write_text(json.dumps(config or _read(base / TOKENIZER_CONFIG) | named), encoding="utf-8")


def _present(directory: Path, patterns: Iterable[str]) -> list[str]:
    found = sorted(file for pattern in patterns for file in directory.glob(pattern) if file.is_file())
    return [str(file.relative_to(directory)) for file in found]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return fields


def _auto_tokenizer(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, use_fast=True)


def _check_sentencepiece(directory: Path) -> None:
    """Refuse what transformers takes for tiktoken's, and asks for tiktoken, where sentencepiece is missing."""
    models = sorted(directory.glob("*.model"))
    if models and importlib.util.find_spec("sentencepiece") is None:
        raise ImportError(
            f"it is a sentencepiece model ({models[0].name}) without {FILE}; reading it needs sentencepiece: pip "
            "install sentencepiece protobuf"
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


def _add_tokens(backend: Tokenizer, declared: Any, config: Mapping[str, Any], added: Mapping[str, Any]) -> list[str]:
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
    decoder = config.get("added_tokens_decoder") or {}
    given = [
        *((TOKENIZER_CONFIG, fields["content"], int(number)) for number, fields in decoder.items()),
        *((_ADDED, token, int(number)) for token, number in added.items()),
    ]
    for file, token, number in given:
        actual = backend.token_to_id(token)
        if actual == number:
            continue
        contradiction = f"{file} gives {token!r} the id {number}, {FILE} the id {actual}"
        if token not in vocab:
            raise ValueError(f"{contradiction}, the next one that is free; correct one of them")
        notes.append(f"{contradiction}, which holds")
    return notes


def _named_twice(declared: Any, config: Mapping[str, Any], named: Mapping[str, Any]) -> list[str]:
    """A note for each special token that two files name differently."""
    notes = []
    for name in sorted(name for name in {*config} & {*named} if name.endswith("_token")):
        one, other = (each.get("content") if isinstance(each, dict) else each for each in (config[name], named[name]))
        if one and other and one != other:
            taken = getattr(declared, name, None)
            notes.append(f"{name} is {one!r} in {TOKENIZER_CONFIG} and {other!r} in {_NAMES}; {taken!r} is taken")
    return notes


def _set_ends(backend: Tokenizer, declared: Any, config: Mapping[str, Any]) -> list[str]:
    """BOS and EOS around every text where `add_bos_token` and `add_eos_token` say otherwise than the file does."""
    asked = {name: config[name] for name in ("add_bos_token", "add_eos_token") if config.get(name) is not None}
    for name, value in asked.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} {value!r} of {TOKENIZER_CONFIG} is neither true nor false; correct it")
    leading, trailing = _ends(backend)
    bos, eos = declared.bos_token, declared.eos_token
    wanted_leading, wanted_trailing = leading, trailing
    if bos is not None and (add_bos := asked.get("add_bos_token")) is not None and add_bos != (leading[:1] == [bos]):
        wanted_leading = [bos, *leading] if add_bos else leading[1:]
    if eos is not None and (add_eos := asked.get("add_eos_token")) is not None and add_eos != (trailing[-1:] == [eos]):
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
    encoding = backend.encode(_probe(backend))
    mask = [*encoding.special_tokens_mask, 0]
    num_leading = mask.index(0)
    num_trailing = mask[-2::-1].index(0) if num_leading < len(encoding) else 0
    return encoding.tokens[:num_leading], encoding.tokens[len(encoding) - num_trailing :]


def _probe(backend: Tokenizer) -> str:
    """A text with a token of its own: `a`, or where that has none, the text of the first token that has one."""
    texts = itertools.chain("a", (backend.decode([number]) for number in sorted(backend.get_vocab().values())))
    return next((text for text in texts if _has_tokens(backend, text)), "")


def _has_tokens(backend: Tokenizer, text: str) -> bool:
    try:
        return bool(backend.encode(text, add_special_tokens=False).ids)
    except Exception:  # noqa: BLE001  # the Rust library's own: a model of words without a token for unknown ones
        return False


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
    probe = _probe(whole)
    probes = [whole.encode(probe), whole.encode(probe, probe)]  # show what the post-processor adds
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
