"""A small synthetic language of hotel reviews: prompts, and the texts that the policy is warmed up on.

Knows nothing of the gold reward's weights: the corpus is what people write, not what the reader likes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit_demo.data.gold import ASPECTS, INTENSIFIER, NEGATION, OPINIONS

PLACES = ("Bergen", "Cadiz", "Delft", "Evora", "Ghent", "Hobart", "Lviv", "Malmo", "Oban", "Porto", "Split", "Turku")

_FRAMES = (
    "The {} was {}.",
    "We found the {} {}.",
    "I thought the {} was {}.",
    "The {} was {}, and the {} was {}.",
    "The {} was {}, but the {} was {}.",
)
_CLOSINGS = ("We would come again.", "We would not come again.", "It was our first visit.", "That is all.")
_ON_TOPIC = 0.4  # how often a sentence of the corpus speaks of what was asked for


@dataclass(frozen=True)
class Example:
    """One text of the warm-up corpus: a prompt and the completion that follows it without a break."""

    prompt: str
    completion: str


def make_prompts() -> list[str]:
    """All prompts of the language, in a fixed order: a place and two different aspects."""
    return [
        f"A review of a hotel in {place}, about the {first} and the {second}:"
        for place in PLACES
        for first in ASPECTS
        for second in ASPECTS
        if first != second
    ]


def make_corpus(prompts: Sequence[str], num_examples: int, *, seed: int) -> list[Example]:
    """Texts for the warm-up.

    Each writer has a mood, which decides how many of the opinions are positive.

    Args:
        prompts: drawn from with replacement.
        num_examples: how many texts.
        seed: the same seed gives the same texts.

    Returns:
        The examples; every completion begins with a space, so that prompt + completion is the text.
    """
    rng = random.Random(seed)
    return [_example(rng, rng.choice(prompts)) for _ in range(num_examples)]


def _example(rng: random.Random, prompt: str) -> Example:
    asked = [aspect for aspect in ASPECTS if f"the {aspect}" in prompt]
    mood = rng.random()
    sentences = []
    for _ in range(rng.randint(1, 5)):
        frame = rng.choice(_FRAMES)
        words: list[str] = []
        for _ in range(frame.count("{}") // 2):
            aspect = rng.choice(asked) if rng.random() < _ON_TOPIC else rng.choice(ASPECTS)
            words += [aspect, _opinion(rng, mood)]
        sentences.append(frame.format(*words))
    if rng.random() < 0.5:
        sentences.append(rng.choice(_CLOSINGS))
    return Example(prompt, " " + " ".join(sentences))


def _opinion(rng: random.Random, mood: float) -> str:
    positive = rng.random() < mood
    word = rng.choice([word for word, weight in OPINIONS.items() if (weight > 0) == positive])
    modifier = rng.choices(["", f"{INTENSIFIER} ", f"{NEGATION} "], weights=[6, 2, 1])[0]
    return modifier + word
