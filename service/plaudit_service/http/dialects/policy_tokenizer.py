"""Special tokens of one policy, exactly as the files of its tokenizer declare them (`--policy-tokenizer`)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plaudit_service.errors import SettingsError
from plaudit_service.http.dialects.special_tokens import LastToken, any_of
from plaudit_service.text.chat_template import ChatTemplateError, compile_chat_template

_TOKENIZER, _CONFIG, _GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
_TEMPLATE = "chat_template.jinja"
# What the assistant says where the chat template is asked what comes behind it.
_SAID = "plaudit"


class PolicyTokens:
    """The special tokens of one policy.

    Args:
        special: All of them.
        ends: Those that end a turn or a text.
        padding: Those that pad, and end nothing.
    """

    def __init__(self, special: Iterable[str], ends: Iterable[str], padding: Iterable[str]) -> None:
        self._special = re.compile(any_of(special))
        self._padding = frozenset(padding)
        at_end = {*ends, *self._padding}
        self._last = re.compile(any_of(at_end))
        self._longest = max(map(len, at_end))

    def find(self, text: str) -> Iterator[str]:
        """Each one in a text that was decoded."""
        return (match.group() for match in self._special.finditer(text))

    def last(self, text: str) -> LastToken | None:
        """The one that ends a turn at the very end of a text, spaces aside; None: there is none."""
        end = len(text.rstrip())
        for start in range(max(0, end - self._longest), end):
            if self._last.fullmatch(text, start, end):
                return LastToken(start, text[start:end] in self._padding)
        return None


def read_policy_tokens(directory: Path) -> PolicyTokens:
    """Read what a tokenizer's files declare; nothing of it is run but the chat template, in its sandbox.

    Ends are the EOS, those that generation_config.json names, and what the chat template writes behind an assistant's
    words.

    Raises:
        SettingsError: the directory holds no tokenizer, one without special tokens or EOS, or a file cannot be read.
    """
    config = _read_object(directory / _CONFIG)
    tokens = _added_tokens(directory, config)
    if not tokens and not config:
        raise _error(
            directory, f"holds neither {_TOKENIZER} nor {_CONFIG}; give the directory of the policy's tokenizer"
        )
    named = _named_tokens(_read_object(directory / "special_tokens_map.json")) | _named_tokens(config)
    special = {text for text, is_special, _ in tokens if is_special} | set(named.values())
    special = {text for text in special if text.strip()}
    ends = {named["eos_token"]} if "eos_token" in named else set()
    ids = _end_ids(_read_object(directory / _GENERATION))
    ends |= {text for text, _, id_ in tokens if id_ in ids}
    ends |= _ends_of_turn(directory, config, named, {text for text, _, _ in tokens} | special)
    if not ends:
        raise _error(directory, f"names no EOS; set eos_token in {_CONFIG}")
    padding = {named["pad_token"]} - ends if "pad_token" in named else set()
    return PolicyTokens(special, ends, padding)


def _added_tokens(directory: Path, config: Mapping[str, Any]) -> list[tuple[str, bool, int]]:
    """Text, whether it is special, and id of each token that was added to the vocabulary."""
    added = _read_object(directory / _TOKENIZER).get("added_tokens") or []
    decoder = config.get("added_tokens_decoder") or {}
    try:
        both = [*added, *({"id": id_, **token} for id_, token in decoder.items())]
        return [(str(token["content"]), bool(token["special"]), int(token["id"])) for token in both]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise _error(directory, f"an added token of {_TOKENIZER} or {_CONFIG} lacks content, special or id") from error


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by the name of their role, such as `eos_token`; those of a list by name and place."""
    named: dict[str, Any] = {}
    for name, value in config.items():
        if name.endswith("_token"):
            named[name] = value
        elif name in {"additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"}:
            named |= value if isinstance(value, dict) else {}
            named |= {f"{name}[{at}]": entry for at, entry in enumerate(value)} if isinstance(value, list) else {}
    texts = {name: entry.get("content") if isinstance(entry, dict) else entry for name, entry in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _end_ids(generation: Mapping[str, Any]) -> set[int]:
    ids = generation.get("eos_token_id")
    return {each for each in (ids if isinstance(ids, list) else [ids]) if isinstance(each, int)}


def _ends_of_turn(directory: Path, config: Mapping[str, Any], named: Mapping[str, str], tokens: set[str]) -> set[str]:
    """The tokens that the chat template writes right behind an assistant's words."""
    template = _chat_template(directory, config)
    if template is None or not tokens:
        return set()
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
    try:
        _, _, behind = compile_chat_template(template, named)(chat).rpartition(_SAID)
    except ChatTemplateError:
        return set()
    first = re.match(rf"\s*({any_of(tokens)})", behind)
    return {first.group(1)} if first else set()


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    try:
        return (directory / _TEMPLATE).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise _error(directory, f"{_TEMPLATE} cannot be read ({error})") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        entries = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next((entry.get("template") for entry in entries), None)
    return template if isinstance(template, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _error(path.parent, f"{path.name} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise _error(path.parent, f"{path.name} is not a JSON object")
    return value


def _error(directory: Path, what: str) -> SettingsError:
    return SettingsError(f"--policy-tokenizer {directory}: {what}")
