"""The tiny models of a run, the items that are scored, and their scores without faults."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nemesis.history import Got, Question, Truth
from plaudit_export.checkpoints.rules import Options
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service import CombinedScorer, Scorer

HELPFUL, HARMLESS, SAFE = "helpful", "harmless", "safe"
COMBINATION = f"{SAFE}=0.75*{HELPFUL}+0.25*{HARMLESS}"

_WORDS = ["<eos>", "<pad>", "good", "fine", "bad", "awful", "so", "very"]
_VOCABULARY = ["the", "quick", "fox", "asks", "nobody", "boils", "an", "egg", "today", "not", "why", "geht", "gut", "é"]
POOL_SIZE = 240
QUESTIONS = (Question(HELPFUL, "error"), Question(HELPFUL, "left"), Question(SAFE, "error"))

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Models:
    """Where the models of a run lie.

    Attributes:
        helpful: A causal reward model.
        harmless: An encoder of pairs, whose scores depend on token type ids.
        other: Another reward model under the first one's name.
        policy: What PPO trains.
        prompts: Of PPO.
    """

    helpful: Path
    harmless: Path
    other: Path
    policy: Path
    prompts: Path


def make(folder: Path) -> Models:
    """Write and export the models."""
    models = Models(*(folder / name for name in (HELPFUL, HARMLESS, "other", "policy", "prompts.jsonl")))
    checkpoints = folder / "checkpoints"
    causal, other = (tiny_causal_checkpoint(checkpoints / f"causal-{seed}", seed=seed) for seed in (0, 1))
    encoder = tiny_encoder_checkpoint(checkpoints / "encoder")
    export_checkpoint(str(causal), models.helpful, Options(name=HELPFUL))
    export_checkpoint(str(encoder), models.harmless, Options(name=HARMLESS, pair=True))
    export_checkpoint(str(other), models.other, Options(name=HELPFUL))
    write_policy(models.policy)
    prompts = ["so", "very very", "so very good", "bad", "fine so"]
    models.prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return models


def write_policy(path: Path, *, max_tokens: int = 32) -> None:
    """A random Llama whose context is so long, and its tokenizer of a few words."""
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(_WORDS)}, unk_token="so"))  # noqa: S106  no password
    core.pre_tokenizer = WhitespaceSplit()
    special = {"eos_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(path)
    config = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=max_tokens,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(path)


def pool(seed: int) -> list[Item]:
    """Items of every form, some with results that are no scores, some that differ in token type ids alone."""
    chance = random.Random(f"{seed}/pool")

    def words(most: int) -> str:
        return " ".join(chance.choices(_VOCABULARY, k=chance.randint(1, most)))

    def item(number: int) -> Item:
        match number % 10:
            case 0 | 1:
                return {"text": words(30)}
            case 2:
                return {"prompt": words(20), "completion": " " + words(15)}
            case 3 | 4:
                return {"prompt": words(20), "completions": [" " + words(12) for _ in range(chance.randint(2, 6))]}
            case 5:
                return {"messages": [_message("user", words(15)), _message("assistant", words(15))]}
            case 6:
                completions = [words(10) for _ in range(chance.randint(2, 4))]
                return {"messages": [_message("user", words(15))], "completions": completions}
            case 7:
                return {"token_ids": [chance.randrange(4, 200) for _ in range(chance.randint(1, 40))]}
            case 8:
                return _cut_in_two(random.Random(f"{seed}/cut/{number // 20}"), later=bool(number // 10 % 2))
            case _:
                return chance.choice([{"text": words(30) * 30}, {"text": ""}, {"prompt": "", "completion": ""}])

    return [item(number) for number in range(POOL_SIZE)]


def _cut_in_two(chance: random.Random, *, later: bool) -> Item:
    """A pair whose tokens are those of its twin, cut at another place: only its token type ids differ."""
    first, second, third = (" ".join(chance.choices(_VOCABULARY, k=3)) for _ in range(3))
    if later:
        return {"prompt": f"{first} [SEP] {second}", "completion": third}
    return {"prompt": first, "completion": f"{second} [SEP] {third}"}


def _message(role: str, content: str) -> Mapping[str, str]:
    return {"role": role, "content": content}


def askable(question: Question, items: Sequence[Item]) -> list[int]:
    """Places of the items that a question may be asked of: the combination takes pairs alone."""
    return [
        place for place, item in enumerate(items) if question.model == HELPFUL or item.keys() & {"prompt", "messages"}
    ]


def truth(models: Models, items: Sequence[Item]) -> Truth:
    """The results of every item without faults, one item at a time, in this process and without HTTP."""
    helpful, harmless = Scorer(models.helpful, num_threads=1), Scorer(models.harmless, num_threads=1)
    scorers = {HELPFUL: helpful, SAFE: CombinedScorer(COMBINATION, [helpful, harmless])}
    return {
        question: tuple(
            tuple(
                Got.of(result.status, result.score, result.heads)
                for result in scorers[question.model].score([item], truncation=question.truncation)
            )
            if place in places
            else ()
            for place, item in enumerate(items)
        )
        for question in QUESTIONS
        for places in [set(askable(question, items))]
    }
