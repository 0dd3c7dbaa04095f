"""Asks preference pairs by which rule a checkpoint was trained: transformers scores them under every plausible one.

Knows nothing of graphs.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import numpy as np
import torch
from tqdm import tqdm

from plaudit_export.checkpoints.checkpoint import Checkpoint
from plaudit_export.checkpoints.rules import Rules
from plaudit_export.checks.pair_answer import Answer, Form, Rule, answer
from plaudit_export.checks.reference import TEMPLATE_ERRORS, Reference, fits, sequences
from plaudit_export.checks.text_files import Item, Pair
from plaudit_export.errors import SourceError
from plaudit_export.quiet import quiet
from plaudit_export.recipes.table import RECIPES, TextRule

_AS_EXPORTED = "as exported"
_AND: dict[tuple[Form, bool], str] = {
    ("text", True): "",
    ("text", False): " without special tokens",
    ("chat", True): " with the tokenizer's special tokens",
    ("chat", False): "",
}
# EOS as a trainer appends it: to a chat in place of the template's last newlines.
_PLAIN_EOS: dict[Form, TextRule] = {
    "text": TextRule(append_eos=True),
    "chat": TextRule(append_eos=True, strip_newlines=True),
}
# As many as are scored of the user's: enough to tell, and minutes on a CPU for a small model.
MAX_PAIRS = 400
# What a candidate may lose of the pairs; one that loses more makes no texts as these are.
_MAX_LOST = 0.5
# Sequences of one length are computed together, up to this many tokens; padding would be another computation.
_MAX_TOKENS = 4096

# A sequence up to the token that is scored: its ids, and its token types where they say something.
_Sequence = tuple[tuple[int, ...], tuple[int, ...] | None]
# Of each pair the two sequences; None: there are none.
_Sequences = tuple[tuple[_Sequence, _Sequence] | None, ...]


@dataclass(frozen=True)
class Candidate:
    """A rule that may be the trainer's: how users say it, and what makes its texts."""

    rule: Rule
    rules: Rules


def ask_pairs(checkpoint: Checkpoint, rules: Rules, pairs: Sequence[Pair]) -> Answer:
    """Score the pairs under every plausible rule, and say which one they speak for.

    Args:
        checkpoint: its model gives the scores, in float32.
        rules: as exported.
        pairs: preference pairs.

    Raises:
        SourceError: the model scores steps, fewer than two pairs are left that every rule makes a text of, or a score
            is not finite.
    """
    if rules.steps is not None:
        raise SourceError(
            "--pairs: pairs can check rules for whole texts, but this model scores steps; leave --pairs out"
        )
    num_given, pairs = len(pairs), _independent(pairs)
    num_repeating = num_given - len(pairs)
    if len(pairs) < 2:
        raise SourceError(
            f"--pairs: {len(pairs)} of {num_given} pairs have two texts that are in no other pair, at least 2 are "
            "needed; give more pairs"
        )
    pairs = pairs[:: -(-len(pairs) // MAX_PAIRS)]
    chosen, *others = candidates(checkpoint, rules, pairs)
    with quiet():
        made = [(chosen, _sequences(checkpoint, chosen, pairs))]
        for other in tqdm(others, desc="tokenizing", unit="rule", leave=False, disable=None):
            texts = _sequences(checkpoint, other, pairs)
            if sum(each is None for each in texts) <= _MAX_LOST * len(pairs):
                made.append((other, texts))
    complete = [at for at in range(len(pairs)) if all(texts[at] is not None for _, texts in made)]
    if len(complete) < 2:
        raise SourceError(
            f"--pairs: {len(complete)} of {len(pairs)} pairs make texts of 1 to {rules.max_tokens} tokens by every "
            "rule; give more, or shorter ones"
        )
    groups: dict[tuple[tuple[_Sequence, _Sequence], ...], list[Candidate]] = {}
    for candidate, texts in made:
        groups.setdefault(tuple(each for at in complete if (each := texts[at]) is not None), []).append(candidate)
    scores = _scores(checkpoint, rules, {text for group in groups for pair in group for text in pair})
    if lost := sum(not math.isfinite(score) for score in scores.values()):
        raise SourceError(
            f"--pairs: {lost} of {len(scores)} texts that rules make of the pairs get a score that is not finite "
            f"(NaN or infinite) from {checkpoint.id}; check that its weights are complete"
        )
    margins = [np.array([scores[one] - scores[other] for one, other in group]) for group in groups]
    num_left_out = len(pairs) - len(complete)
    num_prompts = len({_prompt(pairs[at]) for at in complete})
    joined = [_joined(group) for group in groups.values()]
    return answer(joined, margins, num_given, num_left_out, num_repeating, num_prompts)


def _prompt(pair: Pair) -> str:
    """What is before the answer; of a text, nobody knows where that begins."""
    item = pair.chosen
    return json.dumps(item.get("prompt", item["messages"][:-1] if "messages" in item else item), sort_keys=True)


def _independent(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of which no text is in an earlier one, nor twice: copies are no evidence of their own."""
    seen: set[str] = set()
    found = []
    for pair in pairs:
        texts = {json.dumps(item, sort_keys=True) for item in (pair.chosen, pair.rejected)}
        if len(texts) == 2 and not texts & seen:
            found.append(pair)
            seen |= texts
    return found


def candidates(checkpoint: Checkpoint, rules: Rules, pairs: Sequence[Pair]) -> list[Candidate]:
    """The rules as exported, then each one in every form that the pairs can have.

    Raises:
        SourceError: the model does not score pairs of this form.
    """
    are_chats = {"messages" in item for pair in pairs for item in (pair.chosen, pair.rejected)}
    if len(are_chats) > 1:
        raise SourceError("--pairs: some are chats and some are texts; give pairs of one form")
    given: Form = "chat" if True in are_chats else "text"
    if rules.pair and not any(_in_form("pair", pair.chosen) for pair in pairs):
        raise SourceError("--pairs: this model scores prompt and completion as two texts; give rows with a prompt")
    if given == "chat" and rules.chat_template is None and not rules.pair:
        raise SourceError(
            "--pairs: the file holds chats, but the model has no chat template; give one with --chat-template FILE"
        )
    forms: list[Form] = ["text", *(("chat",) if rules.chat_template is not None else ())]
    found = [candidate for form in forms for candidate in _of_form(checkpoint, rules, form)]
    if checkpoint.kind != "causal":
        pair = replace(rules, pair=True, append_eos=False, chat_end="as_text", add_special_tokens=True)
        found.append(Candidate(Rule("pair", ("as two texts",), ("--pair",)), pair))
    exported = Rule("pair" if rules.pair else given, (_AS_EXPORTED,), ("the same options",))
    return [Candidate(exported, rules), *found]


def _of_form(checkpoint: Checkpoint, rules: Rules, form: Form) -> Iterator[Candidate]:
    """With special tokens and without, with EOS and without, in the manner of the rules as exported if they have it."""
    manner = _PLAIN_EOS[form]
    if rules.append_eos and (form == "text" or rules.chat_end != "template"):
        manner = TextRule(
            append_eos=True,
            strip_newlines=rules.strip_newlines,
            space_before_eos=rules.space_before_eos,
            chat_end=rules.chat_end,
        )
    for special in (form != "chat", form == "chat"):  # the usual way first
        for eos in (False, True) if rules.eos is not None and checkpoint.kind != "encoder" else (False,):
            rule = replace(manner if eos else TextRule(), add_special_tokens=special, chat_special_tokens=special)
            name = f"as {form}s{_AND[form, special]}{', EOS at the end' if eos else ''}"
            recipes = tuple(
                f"--recipe {recipe.name}"
                for recipe in RECIPES.values()
                if not recipe.own_template and _same(form, recipe.rule, rule)
            )
            made = Rule(form, (name,), recipes or (_options(form, rule),))
            yield Candidate(made, replace(rules, pair=False, **asdict(rule)))


def _same(form: Form, one: TextRule, other: TextRule) -> bool:
    """Whether two rules are one to texts, or to chats."""
    ends = []
    for rule in (one, other):
        has_eos = rule.append_eos and not (form == "chat" and rule.chat_end == "template")
        special = rule.chat_special_tokens if form == "chat" else rule.add_special_tokens
        ends.append((special, has_eos, has_eos and rule.strip_newlines, has_eos and rule.space_before_eos))
    return ends[0] == ends[1]


def _options(form: Form, rule: TextRule) -> str:
    if form == "chat":
        special = "--chat-special-tokens" if rule.chat_special_tokens else ""
    else:
        special = "" if rule.add_special_tokens else "--no-add-special-tokens"
    options = [
        special,
        "--append-eos" if rule.append_eos else "",
        "--strip-newlines" if rule.strip_newlines else "",
        "--space-before-eos" if rule.space_before_eos else "",
    ]
    return " ".join(option for option in options if option)


def _joined(group: Sequence[Candidate]) -> Rule:
    """The rule of candidates that make the same token ids; behind the one as exported there are words that say more."""
    rules = [candidate.rule for candidate in group]
    known = [rule for rule in rules if rule.names != (_AS_EXPORTED,)] or rules
    return Rule(
        rules[0].form,
        tuple(name for rule in known for name in rule.names),
        tuple(dict.fromkeys(option for rule in known for option in rule.options)),
    )


def _sequences(checkpoint: Checkpoint, candidate: Candidate, pairs: Sequence[Pair]) -> _Sequences:
    reference = Reference(checkpoint, candidate.rules)

    def sequence(given: Item) -> _Sequence | None:
        item = _in_form(candidate.rule.form, given)
        if item is None:
            return None
        try:
            tokens = reference.tokenize(item)
        except TEMPLATE_ERRORS:
            return None
        if not fits(tokens, candidate.rules):
            return None
        (text,) = sequences(candidate.rules, [(item, tokens)])
        types = None if text.type_ids is None else tuple(text.type_ids.tolist())
        return tuple(text.token_ids.tolist()), types

    both = ((sequence(pair.chosen), sequence(pair.rejected)) for pair in pairs)
    return tuple(None if one is None or other is None else (one, other) for one, other in both)


def _in_form(form: Form, item: Item) -> Item | None:
    """The same conversation in another form: a prompt is a user's turn, a completion an assistant's."""
    messages = item.get("messages")
    if form == "text" and messages is not None:
        contents = [message.get("content") for message in messages]
        return {"text": "".join(map(str, contents))} if all(isinstance(each, str) for each in contents) else None
    if form == "chat" and messages is None:
        if "prompt" not in item:
            return None
        turns = (("user", item["prompt"]), ("assistant", item["completion"]))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}
    if form == "pair" and "prompt" not in item:
        roles = [message["role"] for message in messages or ()]
        return item if roles == ["user", "assistant"] else None
    return item


@torch.no_grad()
def _scores(checkpoint: Checkpoint, rules: Rules, texts: set[_Sequence]) -> dict[_Sequence, float]:
    """The raw score of each sequence by transformers' forward pass, those of one length together."""
    weights = torch.tensor([head.weight for head in rules.heads], dtype=torch.float64)
    scores: dict[_Sequence, float] = {}
    with quiet(), tqdm(total=len(texts), desc="asking the pairs", unit="text", leave=False, disable=None) as bar:
        for batch in _batches(checkpoint, texts):
            inputs = {"input_ids": torch.tensor([ids for ids, _ in batch])}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if any(types is not None for _, types in batch):
                inputs["token_type_ids"] = torch.tensor([types or [0] * len(ids) for ids, types in batch])
            heads = checkpoint.model(**inputs).logits.double()
            scores |= zip(batch, (heads @ weights).tolist(), strict=True)
            bar.update(len(batch))
    return scores


def _batches(checkpoint: Checkpoint, texts: set[_Sequence]) -> Iterator[list[_Sequence]]:
    # transformers' classes refuse batches where the config has no pad token.
    one_by_one = checkpoint.foreign is None and getattr(checkpoint.config, "pad_token_id", None) is None
    longest_first = sorted(texts, key=lambda text: (-len(text[0]), text[0], text[1] or ()))
    for length, same in groupby(longest_first, key=lambda text: len(text[0])):
        rows = list(same)
        step = 1 if one_by_one else max(1, _MAX_TOKENS // length)
        yield from (rows[at : at + step] for at in range(0, len(rows), step))
