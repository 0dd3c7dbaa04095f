"""What transformers itself makes of a text: token ids and raw scores, in float32, one text at a time, never batched."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
import numpy as np
import torch
from tqdm import tqdm

from plaudit_export.checkpoints.checkpoint import Checkpoint
from plaudit_export.checkpoints.rules import Rules
from plaudit_export.checks import golden
from plaudit_export.errors import SourceError, first_line
from plaudit_export.quiet import quiet
from plaudit_service.bundles.bundle import Golden, Steps
from plaudit_service.text.chat_template import compile_chat_template
from plaudit_service.text.token_ids import Ids
from plaudit_service.text.tokenization import TokenizedText, pooled_index

# Undefines the clock: a score is a function of the text alone, so templates fall back to the date that they name.
NO_CLOCK = "{% set strftime_now = no_clock +%}"

# A template is a program: it can fail in more ways than its own.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError)


@dataclass(frozen=True)
class Tokens:
    """One tokenized text; `type_ids` is None where the model has none or takes its default."""

    token_ids: list[int]
    type_ids: list[int] | None = None


Case = tuple[Mapping[str, Any], Tokens]


class Reference:
    """Tokenizes and scores with the checkpoint's own tokenizer and model.

    Args:
        checkpoint: the reward model.
        rules: how its texts are tokenized, and what its heads weigh.
        device: where the model computes (`devices.computing_on`).
    """

    def __init__(self, checkpoint: Checkpoint, rules: Rules, device: str = "cpu") -> None:
        self._checkpoint = checkpoint
        self._rules = rules
        self._device = device

    def tokenize(self, item: Mapping[str, Any]) -> Tokens:
        """Token ids of a wire item, by the rules of docs/scoring.md.

        Raises:
            jinja2.TemplateError, ChatTemplateError: the chat template refuses the messages.
        """
        if "token_ids" in item:
            return Tokens(list(item["token_ids"]))
        if self._rules.steps is not None:
            return self._tokenize_steps(item, self._rules.steps)
        finished, chat_end = item.get("finished", True), self._rules.chat_end
        if "messages" in item and not self._rules.pair:
            finished = finished and chat_end != "template"
            rendered = self._render(item["messages"])
            if finished and chat_end == "eos":
                rendered = rendered.rstrip("\n")
            rendered = self._ended(rendered, finished)
            tokens = self._encode(rendered, add_special_tokens=self._rules.chat_special_tokens)
        else:
            texts = [self._ended(text, finished) for text in self._texts(item)]
            tokens = self._encode(*texts, add_special_tokens=self._rules.add_special_tokens)
        ending = [self._rules.eos if self._rules.append_eos and finished else None, self._rules.class_token]
        return self._with_ending(tokens, [token.id for token in ending if token is not None])

    def score(self, item: Mapping[str, Any], tokens: Tokens, *, along: bool = False) -> Golden:
        """Raw score of one text by transformers' own forward pass; the heads along it where they are asked for."""
        ids = tokens.token_ids
        rows = self.along(ids) if along else None
        heads = rows[-1] if rows is not None and self._rules.steps is not None else self.heads(ids, tokens.type_ids)
        kept = None if rows is None else tuple(map(tuple, rows))
        return Golden(item=item, token_ids=tuple(ids), heads=tuple(heads), score=self.weigh(heads), along=kept)

    def along(self, token_ids: Sequence[int]) -> list[list[float]]:
        """Raw head values at every token of one text, up to the one that is scored."""
        ids = torch.tensor([list(token_ids)], device=self._device)
        model: Any = self._checkpoint.model
        with quiet(), torch.no_grad():
            heads: list[list[float]] = model.along(ids, torch.ones_like(ids))[0].double().tolist()
        return heads[: _pooled(token_ids, self._rules) + 1]

    def heads(self, token_ids: Sequence[int], type_ids: Sequence[int] | None) -> list[float]:
        """Raw head values of one text."""
        if self._rules.steps is not None:
            return self.along(token_ids)[-1]
        inputs = {"input_ids": torch.tensor([list(token_ids)], device=self._device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if type_ids is not None:
            inputs["token_type_ids"] = torch.tensor([list(type_ids)], device=self._device)
        with quiet(), torch.no_grad():
            heads: list[float] = self._checkpoint.model(**inputs).logits[0].double().tolist()
        return heads

    def weigh(self, heads: Sequence[float]) -> float:
        """The raw score of head values."""
        total = sum(head.weight * value for head, value in zip(self._rules.heads, heads, strict=True))
        if self._rules.link == "identity":
            return total
        return float(torch.sigmoid(torch.tensor(total, dtype=torch.float64)))

    def _tokenize_steps(self, item: Mapping[str, Any], rule: Steps) -> Tokens:
        """As trainers of process reward models make their texts: each step, and behind it what ends one."""
        chat = [dict(message) for message in item.get("messages", ())]
        if "steps" in item:
            steps = list(item["steps"])
            chat += [{"role": "assistant", "content": ""}] if chat else []
        else:
            steps = [chat[-1]["content"] if chat else item["text"] if "text" in item else item["completion"]]
        written = ""
        for left, step in zip(reversed(range(len(steps))), steps, strict=True):
            is_cut = left == 0 and not item.get("finished", True)
            bare = rule.end.strip()
            has_end = step[-len(rule.end) :] == rule.end or (bare != "" and step.rstrip()[-len(bare) :] == bare)
            written += step if is_cut or has_end else step + rule.end
        if chat:
            chat[-1]["content"] = written
            return self._encode(self._render(chat), add_special_tokens=self._rules.chat_special_tokens)
        prompt = item.get("prompt", "")
        if not rule.apart:
            return self._encode(prompt + written, add_special_tokens=self._rules.add_special_tokens)
        pieces = [prompt, *re.split(f"({re.escape(rule.end)})", written)]
        ids = [one for piece in pieces if piece for one in self._encode(piece, add_special_tokens=False).token_ids]
        bos = self._rules.bos
        return Tokens(ids if bos is None or ids[:1] == [bos.id] else [bos.id, *ids])

    def _texts(self, item: Mapping[str, Any]) -> tuple[str, ...]:
        if "text" in item:
            return (item["text"],)
        if "messages" in item:
            prompt, completion = (message["content"] for message in item["messages"])
            return prompt, completion
        return (item["prompt"], item["completion"]) if self._rules.pair else (item["prompt"] + item["completion"],)

    def _encode(self, *texts: str, add_special_tokens: bool) -> Tokens:
        # As lists of one: given as plain strings, transformers takes a pair with an empty second text for one text.
        with quiet():
            encoded = self._checkpoint.tokenizer(*([text] for text in texts), add_special_tokens=add_special_tokens)
        ids = list(encoded["input_ids"][0])
        type_ids = list(encoded["token_type_ids"][0]) if self._checkpoint.token_type_ids else None
        bos = self._rules.bos
        if add_special_tokens and bos and texts[0].startswith(bos.text) and ids[:2] == [bos.id, bos.id]:
            return Tokens(ids[1:], type_ids and type_ids[1:])
        return Tokens(ids, type_ids)

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        template = self._rules.chat_template
        if template is not None:
            self._render_within_bounds(messages)
            if "strftime_now" in template:
                template = NO_CLOCK + template
        rendered: str = self._checkpoint.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=False,
        )
        return rendered

    @cached_property
    def _render_within_bounds(self) -> Callable[[Sequence[Mapping[str, Any]]], str]:
        """Renders as the service will: transformers' sandbox would wait for a template that never ends.

        Raises:
            ChatTemplateError: the service would not render with this template; from the function, these messages.
        """
        named = {"bos_token": self._rules.bos, "eos_token": self._rules.eos}
        tokens = {name: token.text for name, token in named.items() if token is not None}
        return compile_chat_template(str(self._rules.chat_template), self._rules.template_tokens | tokens)

    def _ended(self, text: str, finished: bool) -> str:
        """How the trainer's text ends, before it is encoded; docs/scoring.md."""
        if not finished:
            return text
        while self._rules.strip_newlines and text[-1:] == "\n":
            text = text[:-1]
        eos = self._rules.eos
        if self._rules.space_before_eos and eos is not None and text and text[-len(eos.text) :] != eos.text:
            text += " " + eos.text
        return text

    def _with_ending(self, tokens: Tokens, ending: Sequence[int]) -> Tokens:
        ids, types = list(tokens.token_ids), tokens.type_ids
        for token_id in ending:
            if ids[-1:] != [token_id]:
                ids.append(token_id)
                types = types and [*types, types[-1]]
        return Tokens(ids, types)


def golden_cases(
    checkpoint: Checkpoint, rules: Rules, items: Sequence[Mapping[str, Any]], longest: int, notes: list[str]
) -> list[Case]:
    """Tokenize the built-in items that the model can take, and all of the user's.

    Args:
        checkpoint: the reward model.
        rules: how its texts are tokenized.
        items: the user's golden texts.
        longest: tokens of the longest built-in text; at most the model's `max_tokens`.
        notes: gets a line for each chat that the template refuses.

    Raises:
        SourceError: the model cannot take an item of the user's, or the chat template takes no chat at all.
    """
    reference = Reference(checkpoint, rules)
    users = [(item, _tokenize_golden(reference, rules, number, item)) for number, item in enumerate(items, start=1)]
    return _built_in_cases(reference, checkpoint, rules, longest, notes) + users


def sequences(rules: Rules, cases: Sequence[Case]) -> list[TokenizedText]:
    """Tokenized texts as the service gives them to an engine."""
    return [_sequence(rules, tokens) for _, tokens in cases]


def users_sequences(
    checkpoint: Checkpoint, rules: Rules, option: str, items: Sequence[Mapping[str, Any]], notes: list[str]
) -> list[TokenizedText]:
    """The sequences of the user's texts; those that the model cannot take are left out, which gives a note.

    Raises:
        SourceError: an item has a form that this model does not score, or fewer than two are left.
    """
    reference = Reference(checkpoint, rules)
    fitting = []
    for number, item in enumerate(tqdm(items, desc=option, unit="text", leave=False, disable=None), start=1):
        tokens = _tokenize_item(reference, rules, f"{option}: item {number}", item)
        if fits(tokens, rules):
            fitting.append(_sequence(rules, tokens))
    if num_left_out := len(items) - len(fitting):
        limits = f"1 to {rules.max_tokens} tokens"
        notes.append(f"{option}: {num_left_out} of {len(items)} texts are left out, the model takes {limits}")
    if len(fitting) < 2:
        raise SourceError(f"{option}: {len(fitting)} texts that the model can take; give at least 2")
    return fitting


def _sequence(rules: Rules, tokens: Tokens) -> TokenizedText:
    ids = np.array(tokens.token_ids, dtype=np.int64)
    if rules.kind == "causal":
        return TokenizedText(ids[: _pooled(ids, rules) + 1], None, len(ids), truncated=False)
    type_ids = np.array(tokens.type_ids, dtype=np.int64) if any(tokens.type_ids or ()) else None
    return TokenizedText(ids, type_ids, len(ids), truncated=False)


def _pooled(token_ids: Sequence[int] | Ids, rules: Rules) -> int:
    ids = np.array(token_ids, dtype=np.int64)
    return pooled_index(ids, rules.pad_token_id, rules.pooled_before, rules.step_token_id)


def _built_in_cases(
    reference: Reference, checkpoint: Checkpoint, rules: Rules, longest: int, notes: list[str]
) -> list[Case]:
    special_texts = {name: token.text for name, token in (("bos", rules.bos), ("eos", rules.eos)) if token}
    prompts = golden.prompt_items()
    if rules.pair:
        num_free_tokens = longest - len(reference.tokenize(prompts[-1]).token_ids)
        items = [*prompts, golden.long_pair(prompts[-1], num_free_tokens)]
    else:
        ids = reference.tokenize(prompts[0]).token_ids
        pad_token_id = rules.pad_token_id if checkpoint.kind == "causal" else None
        items = golden.text_items(special_texts) + prompts + (golden.step_items() if rules.steps else [])
        items += golden.token_items(ids, longest, pad_token_id if rules.pooled_before is None else rules.pooled_before)
    cases: list[Case] = [(item, reference.tokenize(item)) for item in items]
    cases += _chat_cases(reference, rules, notes)
    special_ids = set(checkpoint.tokenizer.all_special_ids)
    return [
        (item, tokens)
        for item, tokens in cases
        if fits(tokens, rules)
        and ("token_ids" in item or not special_ids.issuperset(tokens.token_ids))
        and (rules.step_token_id is None or rules.step_token_id in tokens.token_ids)
    ]


def _chat_cases(reference: Reference, rules: Rules, notes: list[str]) -> list[Case]:
    chats = golden.chat_items()
    if rules.pair:
        roles = ["user", "assistant"]
        return [(item, reference.tokenize(item)) for item in chats if [t["role"] for t in item["messages"]] == roles]
    if rules.chat_template is None:
        return []
    cases: list[Case] = []
    for item in chats:
        try:
            cases.append((item, reference.tokenize(item)))
        except TEMPLATE_ERRORS as error:
            turns = " / ".join(turn["role"] for turn in item["messages"])
            refusal = f"the chat template refuses a chat of {turns}: {first_line(error)}"
            notes.append(refusal)
    if not cases:
        raise SourceError(f"{refusal}; it takes none of {len(chats)} chats (--chat-template)")
    return cases


def _tokenize_golden(reference: Reference, rules: Rules, number: int, item: Mapping[str, Any]) -> Tokens:
    where = f"--golden: item {number}"
    tokens = _tokenize_item(reference, rules, where, item)
    if not fits(tokens, rules):
        limits = f"1 to {rules.max_tokens} tokens, ids below {rules.vocab_size}"
        raise SourceError(f"{where}: {len(tokens.token_ids)} tokens; the model takes {limits}")
    return tokens


def _tokenize_item(reference: Reference, rules: Rules, where: str, item: Mapping[str, Any]) -> Tokens:
    if rules.pair and not {"prompt", "messages"} & item.keys():
        raise SourceError(
            f"{where}: this model scores prompt and completion as two texts; give both instead of one text"
        )
    if "messages" in item and not rules.pair and rules.chat_template is None:
        raise SourceError(f"{where}: the model has no chat template")
    try:
        return reference.tokenize(item)
    except TEMPLATE_ERRORS as error:
        raise SourceError(f"{where}: {first_line(error)}") from error


def fits(tokens: Tokens, rules: Rules) -> bool:
    """Whether the model takes a text of these tokens."""
    ids = tokens.token_ids
    return 0 < len(ids) <= rules.max_tokens and max(ids) < rules.vocab_size
