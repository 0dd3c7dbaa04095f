"""The gold reward: what the reader of a hotel review would pay for it, in closed form.

Knows nothing of models. It stands for the human of Gao et al. 2022 (arXiv 2210.10760), section 2: preferences are drawn
from it, the reward model never sees it, and it tells whether PPO helped or merely pleased the reward model.
"""

import re
from collections import Counter
from dataclasses import dataclass

ASPECTS = ("room", "bed", "breakfast", "service", "view", "pool", "garden", "bar")

# What one use of a word is worth to the reader.
OPINIONS = {
    "wonderful": 0.9,
    "lovely": 0.7,
    "quiet": 0.6,
    "clean": 0.5,
    "pleasant": 0.4,
    "good": 0.3,
    "fine": 0.1,
    "plain": -0.2,
    "small": -0.3,
    "cold": -0.5,
    "noisy": -0.6,
    "dirty": -0.8,
    "awful": -0.9,
}
NEGATION, INTENSIFIER = "not", "very"
INTENSITY = 1.5
TOPIC = 0.6
REPETITION = 0.2
STUTTER = 0.5
IDEAL_WORDS, WORDS_SCALE = 26, 13

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Gold:
    """The gold reward of one rollout and the four terms that it is the sum of."""

    opinion: float
    topic: float
    repetition: float
    length: float

    @property
    def reward(self) -> float:
        """The sum of the four terms."""
        return self.opinion + self.topic + self.repetition + self.length


def gold_terms(prompt: str, completion: str) -> Gold:
    """The terms of the gold reward of a completion.

    opinion    = sum over opinion words of weight * (1.5 after "very", -1 after "not", else 1)
    topic      = 0.6 * number of aspects that the prompt asks for and the completion names
    repetition = -0.2 * sum over distinct opinion words of (uses - 1)^3 - 0.5 * number of words equal to the one before
    length     = -((words - 26) / 13)^2

    Praise pays, but each further use of the same word costs more than the one before, and there is a best length. Texts
    like those of the corpus hardly ever repeat a word more than once, so a reward model learns little of what that
    costs: there a policy can over-optimize.

    Args:
        prompt: the text that asks for a review.
        completion: the review. Case and punctuation do not matter.

    Returns:
        The four terms; their sum is the gold reward.
    """
    words = _WORD.findall(completion.lower())
    opinion, stutters = 0.0, 0
    for before, word in zip(["", *words], words, strict=False):
        factor = {NEGATION: -1.0, INTENSIFIER: INTENSITY}.get(before, 1.0)
        opinion += factor * OPINIONS.get(word, 0.0)
        stutters += word == before
    asked = set(_WORD.findall(prompt.lower())) & set(ASPECTS)
    uses = Counter(word for word in words if word in OPINIONS)
    return Gold(
        opinion=opinion,
        topic=TOPIC * len(asked & set(words)),
        repetition=-REPETITION * sum((count - 1) ** 3 for count in uses.values()) - STUTTER * stutters,
        length=-(((len(words) - IDEAL_WORDS) / WORDS_SCALE) ** 2),
    )


def gold_reward(prompt: str, completion: str) -> float:
    """The gold reward of a completion; see `gold_terms`."""
    return gold_terms(prompt, completion).reward
