"""Combinations: a formula over the scores of several models is a model of its own.

Pure; knows nothing of texts, queues or HTTP.

    NAME=0.7*helpful+0.3*harmless    weighted sum; subtract with a negative weight: a+-0.5*b
    NAME=min(a,b,...)                the most careful of an ensemble
    NAME=mean-std(a,b,...)           mean less the ensemble's disagreement; also mean-K*std(a,b,...)

Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization", arXiv 2310.02743, section 3: `min` is their
worst-case optimization (equation 4), `mean-std` stands for their uncertainty-weighted one (equation 5). Deviation: they
subtract the variance, here it is the standard deviation, so that K has no unit.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from plaudit_service.bundles.bundle import Bundle, canonical_sha256
from plaudit_service.errors import InvalidRequest, SettingsError
from plaudit_service.items import ScoreRequest, TokenItem
from plaudit_service.results import Identity, Result, Status

# Of the statuses of several failed parts, the first of these is answered: what is wrong with the service or its models
# before what is wrong with the text, and what another attempt may cure last.
WORST_FIRST = (Status.FAILED, Status.NON_FINITE, Status.TOO_LONG, Status.EMPTY, Status.EXPIRED)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENSEMBLE = re.compile(r"(?P<rule>min|mean\s*-\s*(?:(?P<k>[^()]*?)\s*\*\s*)?std)\s*\((?P<parts>.*)\)")
_FORMS = "write NAME=W*PART+W*PART, NAME=min(PART,PART), NAME=mean-std(PART,PART) or NAME=mean-K*std(PART,PART)"


@dataclass(frozen=True)
class Combination:
    """A named formula over the scores of its parts.

    Attributes:
        name: The model name that requests use.
        rule: How the parts' scores become one.
        parts: Names of the models that are combined, each once.
        numbers: Of a `sum` the weight of each part; of `mean-std` the factor of the deviation alone; of `min` none.
    """

    name: str
    rule: Literal["sum", "min", "mean-std"]
    parts: tuple[str, ...]
    numbers: tuple[float, ...] = ()

    @property
    def formula(self) -> str:
        """What stands right of the name, in one way of writing."""
        if self.rule == "sum":
            return "+".join(f"{weight!r}*{part}" for weight, part in zip(self.numbers, self.parts, strict=True))
        rule = f"mean-{self.numbers[0]!r}*std" if self.rule == "mean-std" else "min"
        return f"{rule}({','.join(self.parts)})"

    def identity(self, parts: Sequence[Identity]) -> Identity:
        """Its own name and fingerprint, of all that can change a score: the formula and the parts' fingerprints.

        As in bundles, names do not count. Several engines are named in the order of the parts, joined by `+`.
        """
        content = {"rule": self.rule, "numbers": self.numbers, "parts": [part.fingerprint for part in parts]}
        engines = dict.fromkeys(part.engine for part in parts)
        return Identity(self.name, canonical_sha256(content), "+".join(engines))

    def check_request(self, request: ScoreRequest, parts: Sequence[Bundle]) -> None:
        """Refuse what is different for each part: tokens and texts, and token ids unless the tokenizers are the same.

        Raises:
            InvalidRequest: 422.
        """
        for name, is_asked in (("along", request.along != "none"), ("explain", request.explain)):
            if is_asked:
                raise InvalidRequest(
                    f'{name}: "{self.name}" combines {", ".join(self.parts)}, each with tokens and texts of its own; '
                    "ask each part by its own name"
                )
        if len({part.scoring.sha256["tokenizer.json"] for part in parts}) == 1:
            return
        for number, item in enumerate(request.items):
            if isinstance(item, TokenItem):
                raise InvalidRequest(
                    f'items[{number}].token_ids: the parts of "{self.name}" ({", ".join(self.parts)}) have different '
                    "tokenizers; send text or messages instead, or ask each part by its own name"
                )

    def compute(self, scores: Sequence[float]) -> float:
        """Combine finite scores, one per part, in float64 from left to right; infinite where that overflows.

        `mean-std` is mean - k * sqrt(mean((score - mean)^2)): the deviation of the whole ensemble (divided by n).
        """
        match self.rule:
            case "sum":
                return _sum([weight * score for weight, score in zip(self.numbers, scores, strict=True)])
            case "min":
                return min(scores)
            case "mean-std":
                mean = _sum(scores) / len(scores)
                deviations = [score - mean for score in scores]
                variance = _sum([deviation * deviation for deviation in deviations]) / len(scores)
                return mean - self.numbers[0] * math.sqrt(variance)

    def terms(self, scores: Mapping[str, float]) -> dict[str, float] | None:
        """What `compute` adds up, by part, in its order: the sum from left to right has its bits; None: it is no sum.

        Args:
            scores: Of each part, as `heads` of a combined result.
        """
        if self.rule != "sum":
            return None
        return {part: weight * scores[part] for part, weight in zip(self.parts, self.numbers, strict=True)}

    def combine(self, results: Sequence[Result]) -> Result:
        """One sequence's result from that of each part; without a score unless all have one."""
        (index,) = {result.index for result in results}
        num_tokens = max(result.num_tokens for result in results)
        truncated = any(result.truncated for result in results)
        heads = {
            part: result.score
            for part, result in zip(self.parts, results, strict=True)
            if result.score is not None  # else it is one of the failed
        }
        if len(heads) < len(results):
            failed = [(part, result) for part, result in zip(self.parts, results, strict=True) if not result.ok]
            part, worst = min(failed, key=lambda named: WORST_FIRST.index(named[1].status))
            detail = f'part "{part}": {worst.detail or worst.status}'
            return Result(worst.status, None, num_tokens, truncated, detail, index=index)
        score = self.compute(list(heads.values()))
        if not math.isfinite(score):
            detail = "the combined score is not finite"
            return Result(Status.NON_FINITE, None, num_tokens, truncated, detail, index=index)
        return Result(Status.OK, score, num_tokens, truncated, heads=heads, index=index)


def parse_combination(text: str) -> Combination:
    """Read `NAME=FORMULA`; spaces around names, numbers and signs do not matter.

    Raises:
        SettingsError: it is no combination; the message says why.
    """
    name, equals, formula = (part.strip() for part in text.partition("="))
    if not equals or not _NAME.fullmatch(name):
        raise _wrong(
            text, f"NAME= is missing before the formula, or has other characters than letters, digits and ._-; {_FORMS}"
        )
    ensemble = _ENSEMBLE.fullmatch(formula)
    if ensemble is None:
        terms = [term.rpartition("*") for term in formula.split("+")]
        parts = _parts(text, [part for _, _, part in terms])
        weights = tuple(_number(text, "weight", weight) if star else 1.0 for weight, star, _ in terms)
        return Combination(name, "sum", parts, weights)
    parts = _parts(text, ensemble["parts"].split(","))
    if len(parts) < 2:
        raise _wrong(text, "an ensemble has at least two parts")
    if ensemble["rule"] == "min":
        return Combination(name, "min", parts)
    return Combination(name, "mean-std", parts, (1.0 if ensemble["k"] is None else _number(text, "K", ensemble["k"]),))


def parse_combinations(texts: Sequence[str], models: Sequence[str]) -> list[Combination]:
    """Read combinations of the loaded bundles of these names.

    Raises:
        SettingsError: two bundles have one name; or a combination cannot be read, has a name that is taken, or a part
            that is not loaded.
    """
    for name in models:
        if models.count(name) > 1:
            raise SettingsError(f'two bundles are named "{name}"; export one of them again with --name')
    taken = set(models)
    combinations = []
    for text in texts:
        combination = parse_combination(text)
        if combination.name in taken:
            raise _wrong(text, f'the name "{combination.name}" is taken; choose another')
        for part in combination.parts:
            if part not in models:
                loaded = ", ".join(models)
                raise _wrong(
                    text, f'part "{part}" is not a loaded bundle (here: {loaded}); give the bundle of that part, too'
                )
        taken.add(combination.name)
        combinations.append(combination)
    return combinations


def _parts(text: str, names: Sequence[str]) -> tuple[str, ...]:
    parts = tuple(name.strip() for name in names)
    for part in parts:
        if not _NAME.fullmatch(part):
            raise _wrong(text, f"{part!r} is not a name of a model; {_FORMS}")
        if parts.count(part) > 1:
            raise _wrong(text, f'part "{part}" is named twice; name each part once')
    return parts


def _number(text: str, what: str, written: str) -> float:
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(
            text, f"{what} {written.strip()!r} is not a finite number; write W*PART, and subtract with +-W*PART"
        )
    return number


def _sum(values: Sequence[float]) -> float:
    """From left to right; what the built-in one does with floats depends on the version of Python."""
    total = 0.0
    for value in values:
        total += value
    return total


def _wrong(text: str, why: str) -> SettingsError:
    return SettingsError(f"combination {text!r}: {why}")
