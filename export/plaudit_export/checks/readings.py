"""What other readings of a checkpoint's files would make of the golden texts: a note for each that differs.

Knows nothing of scores and graphs.
"""

import dataclasses
from collections.abc import Sequence

import transformers

from plaudit_export.checkpoints.checkpoint import Checkpoint
from plaudit_export.checkpoints.rules import Options, Rules
from plaudit_export.checkpoints.tokenizer_file import FILE
from plaudit_export.checks.reference import TEMPLATE_ERRORS, Case, Reference


def other_readings(checkpoint: Checkpoint, rules: Rules, options: Options, cases: Sequence[Case]) -> list[str]:
    """Which reading was taken where the files allow two, and how to take the other.

    Args:
        checkpoint: the reward model.
        rules: how its texts are tokenized.
        options: what the user said.
        cases: the golden texts and their ids by `rules`.
    """
    notes = list(checkpoint.tokenizer_notes)
    if checkpoint.auto_tokenizer is not None:
        notes.append(_auto_tokenizer(checkpoint, rules, cases))
    if options.chat_special_tokens is None and options.recipe is None:
        notes += _chat_special_tokens(checkpoint, rules, cases)
    return notes


def _auto_tokenizer(checkpoint: Checkpoint, rules: Rules, cases: Sequence[Case]) -> str:
    auto = checkpoint.auto_tokenizer
    other = Reference(dataclasses.replace(checkpoint, tokenizer=auto), rules)
    texts = [(item, tokens) for item, tokens in cases if "token_ids" not in item]
    return (
        f"{FILE} is taken as it lies on disk; AutoTokenizer of transformers {transformers.__version__} builds a "
        f"{type(auto).__name__} that gives other token ids for {_num_differing(other, texts)} of {len(texts)} golden "
        f"texts (to score with that one, save it over {FILE} with its save_pretrained)"
    )


def _chat_special_tokens(checkpoint: Checkpoint, rules: Rules, cases: Sequence[Case]) -> list[str]:
    """TRL and `apply_chat_template` add nothing to a rendered chat; many model cards write `tokenizer(rendered)`."""
    chats = [(item, tokens) for item, tokens in cases if "messages" in item and not rules.pair]
    other = Reference(checkpoint, dataclasses.replace(rules, chat_special_tokens=True))
    if not _num_differing(other, chats):
        return []
    tokenizer = checkpoint.tokenizer
    added = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])))
    return [
        "chats get the special tokens that the chat template writes and no others, as TRL trains; if the reward model "
        f"is meant to be called as tokenizer(rendered chat), which adds {added}, give --recipe hf, or "
        "--chat-special-tokens alone"
    ]


def _num_differing(other: Reference, cases: Sequence[Case]) -> int:
    num_differing = 0
    for item, tokens in cases:
        try:
            same = other.tokenize(item) == tokens
        except TEMPLATE_ERRORS:
            same = False
        num_differing += not same
    return num_differing
