"""The texts that are scored in benchmarks: real dialogues of PLAUDIT_DATA, or words with their length distribution.

Every round of a benchmark gets texts of its own, so that no cache of an earlier round can answer.
"""

import gzip
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]

# Of hh-harmless, in words: mean and standard deviation of the logarithm.
_PROMPT_WORDS = (3.9, 1.1)
_COMPLETION_WORDS = (3.0, 1.0)
_LONGEST_WORDS = 300
_WORDS = ["the", "house", "is", "not", "far", "but", "who", "knows", "what", "you", "asked", "when", "it", "was"]

Group = dict[str, Any]


@dataclass(frozen=True)
class Dialogue:
    """A prompt, up to where the assistant answers, and the answer with its leading space."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        """What is scored."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Texts:
    """Dialogues in a fixed order, dealt out in lots.

    Attributes:
        dialogues: Those that the model can read whole.
        origin: Where they come from.
        fits: Whether the model can read a text whole.
    """

    dialogues: Sequence[Dialogue]
    origin: str
    fits: Callable[[str], bool] = lambda text: True

    def singles(self, lot: int, count: int) -> list[str]:
        """The texts of a lot; lots do not overlap until the dialogues are used up."""
        return [dialogue.text for dialogue in self._lot(lot, count)]

    def groups(self, lot: int, count: int, *, completions: int = 8) -> list[Group]:
        """Items of a lot: prompts, each with its own completion and different ones of other dialogues."""
        items = []
        for number, dialogue in enumerate(self._lot(lot, count)):
            others = self._lot(lot * count + number + 1, 10 * completions)
            different = dict.fromkeys([dialogue.completion, *(other.completion for other in others)])
            fitting = (completion for completion in different if self.fits(dialogue.prompt + completion))
            chosen = list(islice(fitting, completions))
            assert len(chosen) == completions, "too few different completions"
            items.append({"prompt": dialogue.prompt, "completions": chosen})
        return items

    def _lot(self, lot: int, count: int) -> list[Dialogue]:
        return [self.dialogues[at % len(self.dialogues)] for at in range(lot * count, (lot + 1) * count)]


def read_texts(bundle: Path) -> Texts:
    """All dialogues that the bundle's model can read."""
    dialogues, origin = all_dialogues()
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    limit = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["scoring"]["max_tokens"]

    def fits(text: str) -> bool:
        return len(tokenizer.encode(text).ids) <= limit

    return Texts([dialogue for dialogue in dialogues if fits(dialogue.text)], origin, fits)


def all_dialogues() -> tuple[list[Dialogue], str]:
    """The dialogues of PLAUDIT_DATA, or generated ones; and which of both."""
    data = Path(os.environ.get("PLAUDIT_DATA", ROOT.parent / "shared" / "data")) / "hh-harmless" / "pairs.jsonl.gz"
    if not data.exists():
        return generate_dialogues(1000), "generated"
    with gzip.open(data, "rt", encoding="utf-8") as file:
        return [split_dialogue(json.loads(line)["chosen"]) for line in file], "hh-harmless"


def split_dialogue(text: str) -> Dialogue:
    """Cut a dialogue before the assistant's last answer."""
    head, mark, answer = text.rpartition("\n\nAssistant:")
    return Dialogue(head + mark, answer)


def generate_dialogues(count: int, seed: int = 0) -> list[Dialogue]:
    """Different dialogues of random words, as long as those of hh-harmless are."""
    source = random.Random(seed)

    def words(mean: float, std: float) -> str:
        length = min(_LONGEST_WORDS, max(1, round(source.lognormvariate(mean, std))))
        return " ".join(source.choices(_WORDS, k=length))

    return [
        Dialogue(f"\n\nHuman: {number} {words(*_PROMPT_WORDS)}\n\nAssistant:", f" {number} {words(*_COMPLETION_WORDS)}")
        for number in range(count)
    ]


def random_ids(source: random.Random, length: int) -> list[int]:
    """Token ids of ordinary words in MiniLM's vocabulary."""
    return source.choices(range(2000, 28000), k=length)


def sharing_group(seed: int, *, prefix: int = 512, completion: int = 128, completions: int = 8) -> list[Group]:
    """Sequences that begin with one prefix, as token ids, so that their lengths are exact."""
    source = random.Random(seed)
    start = random_ids(source, prefix)
    return [{"token_ids": start + random_ids(source, completion)} for _ in range(completions)]


def sharing_nothing(seed: int, lengths: Sequence[int]) -> list[Group]:
    """Sequences of these lengths, no two of which begin with the same token."""
    source = random.Random(seed)
    starts = source.sample(range(2000, 28000), k=len(lengths))
    return [
        {"token_ids": [start, *random_ids(source, length - 1)]} for start, length in zip(starts, lengths, strict=True)
    ]
