"""What reward models look like that are no *ForSequenceClassification of transformers: facts, one row for each format.

A row says by which names a format is recognized, where its head is, which token the head reads, how the trainer ended
its texts, and whether it normalized scores. Recognized by names alone, of classes, weights and fields of the config;
knows nothing of how a model is loaded. No code of a checkpoint's own is ever run.
"""

import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from plaudit_export.errors import SourceError
from plaudit_export.recipes.table import LLAMAFACTORY, OPENRLHF, SAFE_RLHF, Recipe
from plaudit_service.bundles.bundle import TrainedAt

# LLaMA-Factory's head, in a file of its own beside a language model or an adapter.
VALUE_HEAD = "value_head.safetensors"

# Which token the head reads: the last one; the one before the first token of id 0, or of the config's pad id; the class
# token that is appended to every text.
Pooled = Literal["last", "before_zero", "before_pad", "class_token"]
# Which fields of the config keep mean and deviation, and which one says that the trainer's own class applies them:
# `mean` and `std`, `normalize_reward`; or `mean` and `var`, `do_normalize`.
Normalizing = Literal["mean_std", "mean_var"]


@dataclass(frozen=True)
class Format:
    """One format of reward models.

    Attributes:
        name: whose format it is.
        heads: modules that may be the head, without `.weight`.
        architectures: classes that the config names; none: any.
        own_classes: of these, and of those beside, classes of the checkpoint's own whose computation this row states.
        file: that the head's weights are in, None for the model's own.
        layers: of the head: one, or several with ReLU between them, numbered in steps of two.
        backbone: prefix that the backbone's weights have, None for that of transformers' class.
        num_outputs: of the head, by where it was trained: at the end of a text, the ends of its steps, every token;
            None for any number at the end.
        step_token: that ends each step, None where the user says it.
        beside: weights that belong to the format and not to the backbone or the head.
        model_types: of transformers for model types of the format's own.
        pooled: which token the head reads.
        recipe: by which the trainer made its texts, None where it is not known.
        normalizing: whether and how it normalized scores.
        requires: of fields of the config the values that this row states, the default first, and what they decide.
    """

    name: str
    heads: tuple[str, ...]
    architectures: tuple[str, ...] = ()
    own_classes: tuple[str, ...] = ()
    file: str | None = None
    layers: Literal["one", "several"] = "one"
    backbone: str | None = None
    num_outputs: tuple[tuple[int, TrainedAt], ...] | None = None
    step_token: str | None = None
    beside: tuple[str, ...] = ()
    model_types: tuple[tuple[str, str], ...] = ()
    pooled: Pooled = "last"
    recipe: Recipe | None = None
    normalizing: Normalizing | None = None
    requires: tuple[tuple[str, tuple[str, ...], str], ...] = ()


FORMATS = (
    Format(
        "OpenRLHF",
        heads=("score", "value_head"),  # or what the config names as value_head_prefix
        architectures=("RewardModel", "LLMForSequenceRegression"),
        own_classes=("RewardModel", "LLMForSequenceRegression"),
        recipe=OPENRLHF,
        normalizing="mean_std",
    ),
    Format(
        "LLaMA-Factory",
        heads=("v_head.summary",),
        file=VALUE_HEAD,
        recipe=LLAMAFACTORY,
    ),
    Format("TRL value head", heads=("v_head.summary",)),
    Format(
        "GRM",
        heads=("v_head.summary",),
        layers="several",
        own_classes=("GRewardModel",),
        requires=(("vhead_layer_type", ("mlp",), "the layers of its head"),),
    ),
    Format(
        "safe-rlhf",
        heads=("score_head",),
        own_classes=("LlamaForScore", "LlamaModelForScore"),
        beside=("normalizer.mean", "normalizer.var", "normalizer.count"),
        recipe=SAFE_RLHF,
        normalizing="mean_var",
        requires=(("score_type", ("reward", "cost"), "what its scores are"),),
    ),
    Format(
        "UltraRM, Eurus-RM",
        heads=("regression_head",),
        own_classes=("LlamaRewardModel", "MistralRewardModel", "EurusRewardModel"),
    ),
    Format(
        "Athene-RM",
        heads=("v_head",),
        own_classes=("AtheneForSequenceClassification", "CustomAutoModelForSequenceClassification"),
        backbone="model",
        pooled="class_token",
    ),
    Format(
        "Starling-RM",
        heads=("v_head",),
        own_classes=("LlamaForSequenceClassification",),
        backbone="transformer",
        pooled="before_zero",
    ),
    Format(
        "OASST",
        heads=("out_proj",),
        architectures=("GPTNeoXRewardModel",),
        own_classes=("GPTNeoXRewardModel",),
        model_types=(("gpt_neox_reward_model", "gpt_neox"),),
        requires=(("pooling", ("last",), "the token that its head reads"),),
    ),
    Format(
        "token classification, as verl's and TRL's",
        heads=("score",),
        architectures=("*ForTokenClassification",),
        num_outputs=((1, "tokens"), (2, "steps")),  # a critic; a process reward model, as TRL's
    ),
    Format(
        "Qwen2.5-Math-PRM",
        heads=("score",),
        layers="several",
        architectures=("Qwen2ForProcessRewardModel",),
        own_classes=("Qwen2ForProcessRewardModel",),
        num_outputs=((2, "steps"),),
        step_token="<extra_0>",  # noqa: S106  no password
    ),
    Format(
        "Qwen2.5-Math-RM, INF-ORM",
        heads=("score",),
        layers="several",
        own_classes=("Qwen2ForRewardModel", "INFORMForSequenceClassification"),
        pooled="before_pad",
    ),
)


@dataclass(frozen=True)
class Refused:
    """A format that is not taken: by which class, model type or weight it is recognized, and why not."""

    name: str
    reason: str
    architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    weight: str | None = None


REFUSED = (
    Refused(
        "QRM (quantile reward model)",
        "its head gives the quantiles of a distribution, which a gating network weighs by the prompt",
        ("LlamaForRewardModelWithGating31", "Gemma2ForRewardModelWithGating"),
        weight=r"^gating_network\.",
    ),
    Refused(
        "ArmoRM",
        "a gating network weighs its objectives by the prompt",
        ("LlamaForRewardModelWithGating",),
        weight=r"^(gating|regression_layer)\.",
    ),
    Refused(
        "URM",
        "its head gives means and deviations of attributes, which it weighs by the text",
        ("LlamaForSequenceClassificationWithNormal_Weights",),
    ),
    Refused("LDL-Reward", "its head gives a distribution over labels", ("LDLRewardModel27B",)),
    Refused(
        "PairRM",
        "it compares two texts, and has no score for one",
        ("DebertaV2PairRM",),
        weight=r"^head_layer\.",
    ),
    Refused(
        "InternLM2-reward",
        "transformers has no class for its backbone, and custom code of a checkpoint is never run",
        ("InternLM2ForRewardModel",),
        ("internlm2",),
    ),
    Refused(
        "DeepSpeed-Chat reward model",
        "its score is read by the pad token behind prompt and answer",
        weight=r"^rwtransformer\.",
    ),
    Refused("critic of OpenRLHF", "a critic has a value for each token, and no score", ("CriticModel",)),
)

# What TRL's wrapper puts before the names of the model that it wraps.
WRAPPER = "pretrained_model."
# Of the token that Athene's class reads, where the tokenizer names no class token.
ATHENE_CLASS_ID = 128003
# What safe-rlhf adds to a deviation.
_EPSILON = 1e-8


@dataclass(frozen=True)
class Found:
    """A format in a checkpoint: its row, and the module that is the head."""

    format: Format
    head: str

    def in_head(self, weight: str) -> str | None:
        """The name of a stored weight from the head on; None where it is not the head's."""
        name = weight.removeprefix(WRAPPER)
        return name.removeprefix(f"{self.head}.") if name.startswith(f"{self.head}.") else None

    def owns(self, weight: str) -> bool:
        """Whether a stored weight belongs to the head, or to what the format keeps beside it."""
        return self.in_head(weight) is not None or weight.removeprefix(WRAPPER) in self.format.beside

    def pooled_before(self, config: Any) -> int | None:
        """The id before whose first token the head reads; None: it reads the last token."""
        if self.format.pooled == "before_zero":
            return 0
        return config.pad_token_id if self.format.pooled == "before_pad" else None


@dataclass(frozen=True)
class SavedNormalization:
    """score = (raw - mean) / std, kept by the trainer; `applied` by the trainer's own class as it is saved."""

    mean: float
    std: float
    applied: bool


def recognize(source: str, config: Mapping[str, Any], stored: Collection[str], files: Collection[str]) -> Found | None:
    """The format of a reward model; None where it has none of these heads.

    Args:
        source: the directory.
        config: content of its `config.json`.
        stored: names of all weights in the model's files.
        files: names of the directory's files.

    Raises:
        SourceError: it is of a format that is not taken, or has two heads.
    """
    names = {name.removeprefix(WRAPPER) for name in stored}
    architectures = [str(name) for name in config.get("architectures") or ()]
    is_classifier = classifies(architectures) and bool({"score.weight", "classifier.weight"} & names)
    refuse_unsupported(source, config, () if is_classifier else names)
    if is_classifier:
        _refuse_two_classes(source, architectures)
        return None  # a further head is a weight that transformers' class leaves out, and refused as one
    found = [
        Found(row, head)
        for row in FORMATS
        if _names_class(row, architectures)
        for head in _heads(row, config)
        if _has_head(row, head, names, files)
    ]
    # Of rows with the same head, the one that names the class states what it computes.
    named = {each.head for each in found if each.format.architectures}
    found = [each for each in found if each.format.architectures or each.head not in named]
    if len(found) > 1:
        one, other = (f"{each.head} ({each.format.name})" for each in found[:2])
        raise SourceError(
            f"{source}: has two heads, {one} and {other}, and nothing says which one gives the score; remove the "
            "weights of the other head"
        )
    if not found:
        _refuse_headless(source, config, architectures)
        return None
    _check_fields(source, found[0].format, config)
    return found[0]


def refuse_unsupported(source: str, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise for a format that is not taken.

    Raises:
        SourceError: it is one; the message says why.
    """
    architectures = set(config.get("architectures") or ())
    for row in REFUSED:
        named = architectures & set(row.architectures) or config.get("model_type") in row.model_types
        weight = next((name for name in sorted(names) if row.weight and re.match(row.weight, name)), None)
        if named or weight:
            by = f", by its weight {weight}" if weight and not named else ""
            raise SourceError(f"{source}: is a {row.name}{by}, which is not supported: {row.reason}")


def classifies(architectures: Collection[str]) -> bool:
    """Whether a class is named that classifies texts, by its name."""
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _names_class(row: Format, architectures: Collection[str]) -> bool:
    return not row.architectures or any(
        fnmatchcase(name, wanted) for name in architectures for wanted in row.architectures
    )


def _refuse_two_classes(source: str, architectures: Collection[str]) -> None:
    """A classifier that is named beside a trainer's own class would be scored by one of two text rules."""
    if any(row.architectures and _names_class(row, architectures) for row in FORMATS):
        raise SourceError(
            f"{source}: its config.json names two classes, {' and '.join(architectures)}, and nothing says which "
            "one gives the score; leave only the right one in architectures"
        )


def _refuse_headless(source: str, config: Mapping[str, Any], architectures: Sequence[str]) -> None:
    """A class of a trainer's own is a format, and its head has a name."""
    for row in FORMATS:
        if row.architectures and _names_class(row, architectures):
            raise SourceError(
                f"{source}: is a {architectures[0]} ({row.name}), and has no weights of its head, "
                f"{' or '.join(_heads(row, config))}; save the checkpoint with its head"
            )


def _heads(row: Format, config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("value_head_prefix")
    return (str(named),) if named and "value_head" in row.heads else row.heads


def _has_head(row: Format, head: str, names: Collection[str], files: Collection[str]) -> bool:
    if row.file is not None:
        return row.file in files
    first = f"{head}.weight" if row.layers == "one" else f"{head}.0.weight"
    prefix = row.backbone
    return first in names and (prefix is None or any(name.startswith(f"{prefix}.") for name in names))


def _check_fields(source: str, row: Format, config: Mapping[str, Any]) -> None:
    for field, values, what in row.requires:
        if (given := config.get(field) or values[0]) not in values:
            raise SourceError(
                f"{source}: {field} {given!r} of its config.json ({what}, {row.name}) is not supported; supported is "
                f"{' or '.join(map(repr, values))}"
            )


def saved_normalization(
    source: str, row: Format | None, config: Mapping[str, Any], stored: Mapping[str, float]
) -> SavedNormalization | None:
    """The mean and the deviation that the trainer kept, None where it kept none.

    Args:
        source: the directory.
        row: of the format, None for transformers' own.
        config: content of the checkpoint's `config.json`.
        stored: of the weights that lie beside the head, those of one number.

    Raises:
        SourceError: they are no numbers to normalize with.
    """
    normalizing = None if row is None else row.normalizing
    if normalizing is None:
        normalizing = "mean_var" if "var" in config and "std" not in config else "mean_std"
    switch, spread = ("normalize_reward", "std") if normalizing == "mean_std" else ("do_normalize", "var")
    mean, variation = (
        _number(source, field, stored.get(f"normalizer.{field}", config.get(field))) for field in ("mean", spread)
    )
    if mean is None and variation is None:
        return None
    mean, variation = 0.0 if mean is None else mean, 1.0 if variation is None else variation
    if variation <= 0:
        raise SourceError(f"{source}: {spread} {variation} of its config.json: scores cannot be divided by it")
    if normalizing == "mean_std":
        return SavedNormalization(mean, variation, _switch(source, switch, config))
    mean = 0.0 if config.get("score_type") == "cost" else mean
    return SavedNormalization(mean, math.sqrt(variation) + _EPSILON, _switch(source, switch, config))


def _switch(source: str, field: str, config: Mapping[str, Any]) -> bool:
    value = config.get(field)
    if not isinstance(value, bool | None):
        raise SourceError(f"{source}: {field} {value!r} of its config.json is neither true nor false; correct it")
    return bool(value)


def _number(source: str, field: str, value: Any) -> float | None:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise SourceError(f"{source}: {field} {value!r} is not one finite number")
    return float(value)
