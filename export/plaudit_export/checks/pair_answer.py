"""What preference pairs say of a text rule, in words, as JSON and as a verdict. Knows nothing of models."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from plaudit_export.checks import pair_statistics
from plaudit_export.checks.comparison import Scores
from plaudit_export.checks.pair_statistics import Standing

# How a pair's texts are given to the model: as one text, as a chat, as the two texts of a pair.
Form = Literal["text", "chat", "pair"]
# A rule that ranks fewer right does not guess.
_MOSTLY_WRONG = 0.5
# Pairs of one prompt are hardly draws of their own: an untrained model may prefer one kind of answer to it.
MIN_PROMPTS = 10


@dataclass(frozen=True)
class Rule:
    """A text rule as users say it; several names where several rules give the same token ids of every pair.

    Attributes:
        form: of the texts.
        names: in words.
        options: of the export that take it, each way on its own.
    """

    form: Form
    names: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """All names."""
        return " = ".join(self.names)

    @property
    def remedy(self) -> str:
        """What has to be given for it."""
        return " or ".join(self.options)


@dataclass(frozen=True)
class Answer:
    """What the pairs say.

    Attributes:
        num_given: pairs of the user's.
        num_pairs: that were scored.
        num_left_out: of those to score, where a rule makes no text that the model takes.
        num_repeating: of the user's, with a text that another pair has, or with one text twice.
        num_prompts: of the pairs that were scored.
        ranked: every rule and how it ranks the pairs, the best first.
        chosen: the rule as exported.
        evident: the rule that the checkpoint was evidently trained by; None: the pairs cannot tell.
        better: the best rule, where it is clearly better than the chosen one and than chance.
    """

    num_given: int
    num_pairs: int
    num_left_out: int
    num_repeating: int
    num_prompts: int
    ranked: tuple[tuple[Rule, Standing], ...]
    chosen: Rule
    evident: Rule | None
    better: Rule | None

    def as_json(self) -> dict[str, Any]:
        """For `--json` and `report.json`."""
        return {
            "num_given": self.num_given,
            "num_pairs": self.num_pairs,
            "num_left_out": self.num_left_out,
            "num_repeating": self.num_repeating,
            "num_prompts": self.num_prompts,
            "evident": None if self.evident is None else self.evident.name,
            "clearly_better": None if self.better is None else self.better.name,
            "rules": [
                {"names": list(rule.names), "options": list(rule.options), "chosen": rule is self.chosen}
                | asdict(standing)
                for rule, standing in self.ranked
            ],
        }

    def describe(self) -> str:
        """A table for a terminal, and what it shows."""
        left_out = f" ({self.num_left_out} left out: with some rule, the model cannot take their texts)"
        repeating = (
            f" ({self.num_repeating} left out: one of their texts is also in another pair, or twice in the same pair)"
        )
        lines = [
            f"{self.num_pairs} of {self.num_given} pairs{left_out if self.num_left_out else ''}"
            f"{repeating if self.num_repeating else ''}",
            "rules joined by = give the same token ids for every pair; * marks the rule of the export",
            "accuracy  mean margin  log sigmoid  behind the best    rule",
        ]
        for rule, standing in self.ranked:
            behind = f"{standing.behind:.4f} ± {standing.behind_error:.4f}" if standing.behind else ""
            lines.append(
                f"{standing.accuracy:>8.1%}  {standing.mean_margin:>11.4f}  {standing.log_sigmoid:>11.4f}  "
                f"{behind:>15}  {'*' if rule is self.chosen else ' '} {rule.name}"
            )
        return "\n".join([*lines, self.verdict()])

    def verdict(self) -> str:
        """One line."""
        if self.evident is not None:
            return f"the checkpoint was evidently trained on such pairs {self.evident.name} ({self.evident.remedy})"
        if len(self.ranked) == 1:
            return "the pairs cannot tell: every rule gives the same token ids"
        why = ""
        if self.num_pairs < pair_statistics.MIN_PAIRS:
            why = f"; give at least {pair_statistics.MIN_PAIRS} pairs"
        elif self.num_prompts < MIN_PROMPTS:
            why = f"; they have only {self.num_prompts} prompts, give pairs with at least {MIN_PROMPTS}"
        elif all(standing.accuracy < _MOSTLY_WRONG for _, standing in self.ranked):
            why = "; every rule ranks most pairs the other way around; check that chosen and rejected are not swapped"
        return f"the pairs cannot tell by which rule the checkpoint was trained{why}"

    def objection(self) -> str | None:
        """One line: why the rule as exported is wrong, and the remedy; None: nothing shows that it is."""
        if self.better is None:
            return None
        better, chosen = (
            next(standing.accuracy for rule, standing in self.ranked if rule is which)
            for which in (self.better, self.chosen)
        )
        give = self.better.remedy if self.better.form == self.chosen.form else f"the pairs as {self.better.form}s"
        return (
            f"preference pairs show that another text rule is right: {self.better.name} ranks {better:.1%} of "
            f"{self.num_pairs} pairs right, the rule of the export ({self.chosen.name}) {chosen:.1%}; give "
            f"{give}, or leave --pairs out"
        )


def answer(
    rules: Sequence[Rule],
    margins: Sequence[Scores],
    num_given: int,
    num_left_out: int,
    num_repeating: int = 0,
    num_prompts: int = MIN_PROMPTS,
) -> Answer:
    """What the pairs say.

    Args:
        rules: the one as exported first.
        margins: of each, score(chosen) - score(rejected), shape (pairs,).
        num_given: pairs of the user's.
        num_left_out: of those that were to be scored.
        num_repeating: of the user's, which were not.
        num_prompts: of the pairs that were scored.
    """
    is_varied = num_prompts >= MIN_PROMPTS
    evident = pair_statistics.evident(margins) if len(rules) > 1 and is_varied else None
    standings = pair_statistics.standings(margins)
    best = max(range(len(rules)), key=lambda at: standings[at].log_sigmoid)
    # A rule whose scores say nothing loses less than the right one on pairs that are the other way around.
    is_better = (
        is_varied and pair_statistics.knows(margins[best]) and pair_statistics.clearly_better(margins[best], margins[0])
    )
    return Answer(
        num_given=num_given,
        num_pairs=len(margins[0]),
        num_left_out=num_left_out,
        num_repeating=num_repeating,
        num_prompts=num_prompts,
        ranked=tuple(sorted(zip(rules, standings, strict=True), key=lambda each: -each[1].log_sigmoid)),
        chosen=rules[0],
        evident=None if evident is None else rules[evident],
        better=rules[best] if is_better else None,
    )
