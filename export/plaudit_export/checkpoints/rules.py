"""The rules by which a reward model's texts become scores: read from the checkpoint, given as options, or guessed.

Every guess gives a note for the user. Knows nothing of graphs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plaudit_export.checkpoints.architecture import has_softmax
from plaudit_export.checkpoints.checkpoint import Checkpoint, Kind
from plaudit_export.checkpoints.formats import ATHENE_CLASS_ID
from plaudit_export.checkpoints.positions import usable_positions
from plaudit_export.errors import SourceError
from plaudit_export.recipes.on_disk import Named
from plaudit_export.recipes.settling import Said, ends_with_eos, notes_on, refuse_contradiction, settle
from plaudit_export.recipes.step_ends import settle_steps
from plaudit_export.recipes.table import RECIPES, TEMPLATE, Recipe, TextRule
from plaudit_service.bundles.bundle import (
    ChatEnd,
    Head,
    Link,
    Normalization,
    Scoring,
    ScoringFile,
    SpecialToken,
    Steps,
    TrainedAt,
    WeightsFile,
)

FALLBACK_MAX_TOKENS = 4096
DEFAULT_TOLERANCE = 1e-5
# Of an engine whose kernels are its own, in float32: what was measured is 5e-5 at most (docs/checkpoint-formats.md).
ENGINE_TOLERANCE = 1e-4
# A reference at the full length of a long-context model would take hours on a CPU, at export and at every start.
DEFAULT_GOLDEN_MAX_TOKENS = 4096


Precision = Literal["fp32", "fp16", "bf16", "int8"]
Engine = Literal["onnx", "vllm"]
HeadKind = Literal["linear", "mlp", "token_logits"]


@dataclass(frozen=True)
class TextFile:
    """Texts of the user's: wire items of one sequence each, and the sha256 of the file that they came from."""

    items: Sequence[Mapping[str, Any]]
    sha256: str


@dataclass(frozen=True)
class Options:
    """What the user said about the reward model; None: not said.

    Attributes:
        name: the model name that requests use.
        recipe: the name of its trainer's text rule; a field below that says otherwise contradicts it.
        append_eos: it was trained on texts that end with EOS.
        add_special_tokens: it was trained on texts with the tokenizer's special tokens.
        chat_special_tokens: chats get them too, as `tokenizer(rendered chat)` gives.
        pair: it was trained on (prompt, completion) pairs.
        max_tokens: longest text, in tokens.
        heads: name and weight of each head.
        chat_template: Jinja source that replaces the tokenizer's.
        golden: wire items, checked besides the built-in ones.
        golden_max_tokens: no built-in golden text is longer, whatever the model takes.
        tolerance: largest |difference| / max(1, |score|) between served and reference; None: 1e-5 in fp32, and what
            the golden texts show (with headroom) in other precisions.
        precision: of the weights and the computation.
        engine: what computes the scores: the bundle's own graph (`onnx`), or a server that loads the checkpoint.
        calibrate: texts to calibrate int8 on and to measure any reduced precision on; None: the golden texts.
        allow_loss: accept a precision that ranks too many pairs of texts otherwise than float32 does.
        normalize_on: texts whose scores get mean 0.
        normalize_std: and standard deviation 1.
        normalize_saved: scores are normalized by the mean and the deviation that the trainer kept in the checkpoint;
            None: as its own class does.
        strip_newlines: it was trained on texts without newlines at their end.
        space_before_eos: it was trained on texts with a space before the EOS that was appended.
        token_logits: it is a language model, and these tokens' logits are its heads.
        step_token: it scores steps, and this token ends each.
        step_end: what stood behind each step in its training.
        link: what makes a score of the weighted heads; None: a probability of two heads that score steps.
        builtin_class: the class of transformers is right, also where the checkpoint has code of its own.
        pad_token: what the trainer padded with; "" for nothing.
        device: where the reference scores are computed: `cpu`, `cuda` or `cuda:N`.
    """

    name: str | None = None
    recipe: str | None = None
    append_eos: bool | None = None
    add_special_tokens: bool | None = None
    chat_special_tokens: bool | None = None
    pair: bool = False
    max_tokens: int | None = None
    heads: Sequence[Head] | None = None
    chat_template: str | None = None
    golden: Sequence[Mapping[str, Any]] = ()
    golden_max_tokens: int = DEFAULT_GOLDEN_MAX_TOKENS
    tolerance: float | None = None
    precision: Precision = "fp32"
    engine: Engine = "onnx"
    calibrate: TextFile | None = None
    allow_loss: bool = False
    normalize_on: TextFile | None = None
    normalize_std: bool = True
    normalize_saved: bool | None = None
    strip_newlines: bool | None = None
    space_before_eos: bool | None = None
    token_logits: Sequence[Head] = ()
    step_token: str | None = None
    step_end: str | None = None
    link: Link | None = None
    builtin_class: bool = False
    pad_token: str | None = None
    device: str = "cpu"

    @property
    def default_tolerance(self) -> float:
        """Of float32, where nothing was said."""
        return DEFAULT_TOLERANCE if self.engine == "onnx" else ENGINE_TOLERANCE

    @property
    def text_rule(self) -> Said:
        """What was said of how texts are made, by the fields of a `TextRule`."""
        return {
            "add_special_tokens": self.add_special_tokens,
            "chat_special_tokens": self.chat_special_tokens,
            "append_eos": self.append_eos,
            "strip_newlines": self.strip_newlines,
            "space_before_eos": self.space_before_eos,
        }


@dataclass(frozen=True)
class Rules:
    """The manifest's `scoring` before the files are there; the name, the template, and what was guessed."""

    kind: Kind
    max_tokens: int
    vocab_size: int
    pad_token_id: int | None
    bos: SpecialToken | None
    eos: SpecialToken | None
    template_tokens: dict[str, str | list[str]]
    add_special_tokens: bool
    chat_special_tokens: bool
    append_eos: bool
    strip_newlines: bool
    space_before_eos: bool
    chat_end: ChatEnd
    class_token: SpecialToken | None
    pooled_before: int | None
    pair: bool
    head: HeadKind
    heads: tuple[Head, ...]
    link: Link
    steps: Steps | None
    trained_at: TrainedAt
    normalization: Normalization | None
    name: str
    recipe: str | None
    chat_template: str | None
    notes: tuple[str, ...]

    @property
    def step_token_id(self) -> int | None:
        """Of the token that ends a step; None: it scores texts."""
        return None if self.steps is None else self.steps.token.id

    def scoring(
        self,
        sha256: dict[ScoringFile, str],
        precision: Precision = "fp32",
        weights: Mapping[WeightsFile, str] | None = None,
    ) -> Scoring:
        """The manifest's `scoring` for files with these hashes; with `weights`, for a server that loads those."""
        return Scoring(
            kind=self.kind,
            max_tokens=self.max_tokens,
            vocab_size=self.vocab_size,
            pad_token_id=self.pad_token_id,
            bos=self.bos,
            eos=self.eos,
            template_tokens=self.template_tokens,
            add_special_tokens=self.add_special_tokens,
            chat_special_tokens=self.chat_special_tokens,
            append_eos=self.append_eos,
            strip_newlines=self.strip_newlines,
            space_before_eos=self.space_before_eos,
            chat_end=self.chat_end,
            class_token=self.class_token,
            pooled_before=self.pooled_before,
            pair=self.pair,
            head=self.head,
            heads=self.heads,
            link=self.link,
            steps=self.steps,
            precision=precision,
            normalization=self.normalization,
            engine="vllm" if weights else "onnx",
            weights=dict(weights or {}),
            sha256=sha256,
        )


def derive_rules(checkpoint: Checkpoint, options: Options) -> Rules:
    """Settle every rule.

    Raises:
        SourceError: an option does not fit the checkpoint.
    """
    notes = list(checkpoint.notes)
    foreign = checkpoint.foreign
    if options.pair and checkpoint.kind == "causal":
        raise SourceError(f"--pair: {checkpoint.architecture} is a decoder; pairs are for encoders")
    eos = _special(checkpoint, "eos_token")
    pad_token_id = getattr(checkpoint.config, "pad_token_id", None) if foreign is None else None
    if checkpoint.kind == "causal" and foreign is None:
        notes += _pooling_notes(pad_token_id, eos)
    steps = _steps(checkpoint, options, notes)
    is_apart = steps is not None and steps.apart
    template = None if is_apart else _chat_template(checkpoint, options, notes)
    recipe, text = _text_rule(checkpoint, options, eos, template, notes)
    if steps is not None and (text.append_eos or text.strip_newlines):
        raise SourceError(
            "--append-eos, --strip-newlines, --recipe: the score of a process reward model is read at the end of the "
            "last step, and texts end there; leave them out"
        )
    return Rules(
        kind=checkpoint.kind,
        max_tokens=_max_tokens(checkpoint, options, notes),
        vocab_size=_vocab_size(checkpoint, notes),
        pad_token_id=pad_token_id,
        bos=_special(checkpoint, "bos_token"),
        eos=eos,
        template_tokens=_template_tokens(checkpoint, template),
        add_special_tokens=text.add_special_tokens,
        chat_special_tokens=text.chat_special_tokens,
        append_eos=text.append_eos,
        strip_newlines=text.strip_newlines,
        space_before_eos=text.space_before_eos,
        chat_end=text.chat_end,
        class_token=_class_token(checkpoint, notes),
        pooled_before=None if foreign is None else foreign.pooled_before,
        pair=_pair(checkpoint, options, notes),
        head="linear" if foreign is None else foreign.head,
        heads=_heads(checkpoint, options, notes, knows_steps=steps is not None),
        link=options.link or ("sigmoid" if steps is not None and len(checkpoint.labels) == 2 else "identity"),
        steps=steps,
        trained_at=_trained_at(checkpoint, steps, notes),
        normalization=_saved_normalization(checkpoint, options, notes),
        name=_name(checkpoint, options, notes),
        recipe=None if is_apart else recipe,
        chat_template=template,
        notes=tuple(notes),
    )


def _steps(checkpoint: Checkpoint, options: Options, notes: list[str]) -> Steps | None:
    foreign, said = checkpoint.foreign, options.step_token is not None or options.step_end is not None
    row = None if foreign is None else foreign.format
    if foreign is None or not (said or foreign.trained_at == "steps"):
        if said:
            raise SourceError(
                f"--step-token, --step-end: {checkpoint.architecture} scores whole texts; steps are of token "
                "classifiers, and of language models with --token-logits"
            )
        return None
    token = options.step_token or (row.step_token if row is not None and options.step_end is None else None)
    steps = settle_steps(checkpoint.id, checkpoint.tokenizer, token, options.step_end)
    how = "steps and what ends them are encoded one by one, as TRL does" if steps.apart else "texts are encoded whole"
    notes.append(f"each step ends with {steps.end!r} (token {steps.token.id}), and is scored there; {how}")
    if steps.apart:
        if options.chat_template is not None:
            raise SourceError(
                "--chat-template: TRL trains process reward models on prompts and steps, and renders no chats; leave "
                "it out"
            )
        notes.append(
            "chats are not scored, because TRL trains on prompts and steps (render each chat, and send prompt "
            "and steps)"
        )
    return steps


def _trained_at(checkpoint: Checkpoint, steps: Steps | None, notes: list[str]) -> TrainedAt:
    if steps is not None:
        return "steps"
    if checkpoint.foreign is None or checkpoint.foreign.trained_at == "end":
        return "end"
    notes.append("the head has one label for each token, as a critic: its value at every token is taken as trained")
    return "tokens"


def _special(checkpoint: Checkpoint, which: str) -> SpecialToken | None:
    token = getattr(checkpoint.tokenizer, which)
    if token is None or not str(token):
        return None
    return SpecialToken(text=str(token), id=checkpoint.tokenizer.convert_tokens_to_ids(str(token)))


def _tokens(checkpoint: Checkpoint) -> dict[str, Any]:
    tokens: dict[str, Any] = checkpoint.tokenizer.special_tokens_map
    return tokens


def _template_tokens(checkpoint: Checkpoint, template: str | None) -> dict[str, str | list[str]]:
    """The special tokens that the template reads by name, as transformers would give them, besides BOS and EOS."""
    return {
        name: list(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in _tokens(checkpoint).items()
        if template is not None and name in template and name not in {"bos_token", "eos_token"}
    }


def _max_tokens(checkpoint: Checkpoint, options: Options, notes: list[str]) -> int:
    usable = usable_positions(checkpoint)
    if options.max_tokens is not None:
        if options.max_tokens < 1 or (usable is not None and options.max_tokens > usable):
            raise SourceError(
                f"--max-tokens {options.max_tokens}: more than the {usable} usable positions of {checkpoint.id}; "
                "lower it"
            )
        return options.max_tokens
    limit = usable or FALLBACK_MAX_TOKENS
    if usable is None:
        notes.append(f"the config names no largest position: texts up to {limit} tokens are accepted (--max-tokens)")
    trained = checkpoint.tokenizer.model_max_length
    if trained is not None and trained < limit:
        notes.append(
            f"the tokenizer is set to {trained} tokens, the model has {limit} usable positions: "
            f"{limit} are accepted (--max-tokens)"
        )
    return limit


def _vocab_size(checkpoint: Checkpoint, notes: list[str]) -> int:
    embeddings: Any = checkpoint.model.get_input_embeddings()  # type: ignore[operator]
    vocab_size = int(embeddings.weight.shape[0])
    if len(checkpoint.tokenizer) > vocab_size:
        notes.append(
            f"the tokenizer has {len(checkpoint.tokenizer)} tokens, the model {vocab_size}: "
            "texts with a token beyond that cannot be scored"
        )
    return vocab_size


def _said_or(said: bool | None, otherwise: bool) -> bool:
    return otherwise if said is None else said


def _class_token(checkpoint: Checkpoint, notes: list[str]) -> SpecialToken | None:
    """The token that the head reads, where its trainer appends one: the tokenizer's class token, or Athene's own."""
    row = None if checkpoint.foreign is None else checkpoint.foreign.format
    if row is None or row.pooled != "class_token":
        return None
    token = checkpoint.tokenizer.cls_token
    if token is None and len(checkpoint.tokenizer) > ATHENE_CLASS_ID:
        token = checkpoint.tokenizer.convert_ids_to_tokens(ATHENE_CLASS_ID)
    if token is None:
        raise SourceError(
            f"{checkpoint.id}: the head of {row.name} reads a class token that is appended to every text, and the "
            f"tokenizer names none (cls_token) and has none of id {ATHENE_CLASS_ID}"
        )
    found = SpecialToken(text=str(token), id=checkpoint.tokenizer.convert_tokens_to_ids(str(token)))
    notes.append(f"{found.text!r} ({found.id}) is appended to every text, and is what the head reads ({row.name})")
    return found


def _saved_normalization(checkpoint: Checkpoint, options: Options, notes: list[str]) -> Normalization | None:
    saved = checkpoint.saved_normalization
    if saved is None:
        if options.normalize_saved:
            raise SourceError(f"--normalize saved: {checkpoint.id} keeps no mean and deviation of its trainer's")
        return None
    if options.normalize_on is not None:
        return None
    formula = f"(raw - {saved.mean:g}) / {saved.std:g}"
    if not _said_or(options.normalize_saved, saved.applied):
        notes.append(f"the trainer kept {formula}; it is not applied, scores are raw (--normalize saved)")
        return None
    notes.append(f"scores are normalized as the trainer kept it: {formula} (--normalize none)")
    return Normalization(mean=saved.mean, std=saved.std)


def _text_rule(
    checkpoint: Checkpoint, options: Options, eos: SpecialToken | None, template: str | None, notes: list[str]
) -> tuple[str | None, TextRule]:
    """How its texts are made, and the name of the recipe that makes them so, if there is one."""
    said = options.text_rule
    chosen = _recipe(checkpoint, options)
    has_template = template is not None and not options.pair
    has_eos_at_end = template is not None and eos is not None and ends_with_eos(template, eos.text, _tokens(checkpoint))

    def settled(recipe: Recipe, flags: Said) -> TextRule:
        return settle(recipe, flags, has_template=has_template, template_ends_with_eos=has_eos_at_end)

    rule = settled(chosen.recipe, said)
    if rule.append_eos and eos is None:
        what = "--append-eos:" if options.append_eos else f"{checkpoint.id}: its trainer ends texts with EOS, and"
        raise SourceError(f"{what} the tokenizer has no EOS token")
    if rule.space_before_eos and not rule.append_eos:
        raise SourceError(
            "--space-before-eos: no EOS is appended, so no space can stand before it; give --append-eos too, or "
            "--recipe openrlhf"
        )
    names = [each.name for each in (chosen.recipe, *RECIPES.values()) if settled(each, {}) == rule]
    could_append = eos.text if eos is not None and checkpoint.kind == "causal" else None
    notes += notes_on(chosen, said, names[0] if names else None, could_append)
    return (names[0] if names else None), rule


def _recipe(checkpoint: Checkpoint, options: Options) -> Named:
    """The recipe that the user named, else the format's, else that of the files, else transformers' own way."""
    is_encoder = checkpoint.is_encoder
    if options.recipe is not None:
        recipe = RECIPES[options.recipe]
        refuse_contradiction(recipe, options.text_rule)
        if is_encoder and recipe.rule.append_eos:
            raise SourceError(
                f"--recipe {recipe.name}: ends texts with EOS, and {checkpoint.architecture} is an encoder, whose "
                f"tokenizer ends them; give --recipe {TEMPLATE.name}"
            )
        return Named(recipe, "--recipe")
    found = checkpoint.named_recipe
    if found is not None and is_encoder and found.recipe.rule.append_eos:
        otherwise = "which puts EOS behind plain texts before an encoder's own end; that is not done here"
        return Named(TEMPLATE, f"{found.by}, {otherwise}")
    return found or Named(TEMPLATE, "")


def _pair(checkpoint: Checkpoint, options: Options, notes: list[str]) -> bool:
    if checkpoint.kind != "causal" and not options.pair:
        notes.append("prompt and completion are one text; if the model was trained on pairs of texts, give --pair")
    return options.pair


def _heads(checkpoint: Checkpoint, options: Options, notes: list[str], *, knows_steps: bool) -> tuple[Head, ...]:
    labels = checkpoint.labels
    if options.token_logits:
        if options.heads is not None:
            raise SourceError("--heads: the heads are the tokens of --token-logits, with their weights")
        return tuple(options.token_logits)
    if options.heads is not None:
        if len(options.heads) != len(labels):
            raise SourceError(f"--heads names {len(options.heads)} heads, {checkpoint.id} has {len(labels)}")
        return tuple(options.heads)
    if "" in labels or len({*labels}) < len(labels):
        raise SourceError(
            f"{checkpoint.id}: id2label of its config.json gives its heads the names {', '.join(map(repr, labels))}; "
            "give each one a name of its own, there or with --heads NAME=WEIGHT,..."
        )
    if len(labels) == 1:
        return (Head(name="score" if labels[0] == "LABEL_0" else labels[0]),)
    if knows_steps and len(labels) == 2:
        notes.append(f"the score of a step is the probability of {labels[1]} against {labels[0]} (--heads, --link)")
        return Head(name=labels[0], weight=-1.0), Head(name=labels[1])
    _check_sum(checkpoint, labels)
    notes.append(
        f"{len(labels)} heads ({', '.join(labels)}): the score is their plain sum; to change that, give "
        "--heads NAME=WEIGHT,..."
    )
    return tuple(Head(name=label) for label in labels)


def _check_sum(checkpoint: Checkpoint, labels: Sequence[str]) -> None:
    """Heads that a softmax was trained on mean nothing one by one, and two of them may be such a pair.

    Raises:
        SourceError: the sum of the heads is no guess to make.
    """
    problem: Any = getattr(checkpoint.model.config, "problem_type", None)
    is_softmax = problem == "single_label_classification"
    softmax = "of a softmax" if has_softmax(checkpoint.model.config) and not is_softmax else None
    if not (is_softmax or softmax) and (len(labels) > 2 or problem is not None):
        return
    first, *rest = labels
    odds = ",".join([f"{first}=-1", *(f"{label}=1" for label in rest)])
    why = softmax or (f"whose problem_type is {problem}" if problem else "of a classifier, or two scores")
    which = f"--heads {odds} for the log odds of {rest[0]}" if len(labels) == 2 else "--heads NAME=WEIGHT,..."
    raise SourceError(
        f"{checkpoint.id}: {len(labels)} heads ({', '.join(labels)}) {why}: the config does not say what the "
        f"score is; give {which}, or --heads {','.join(f'{label}=1' for label in labels)} for the sum"
    )


def _pooling_notes(pad_token_id: int | None, eos: SpecialToken | None) -> list[str]:
    if pad_token_id is None:
        return ["the config has no pad token: the last token is scored, as transformers does for one text"]
    if eos is not None and pad_token_id == eos.id:
        return ["the pad token is the EOS token: a final EOS is not what is scored, as in transformers"]
    return []


def _name(checkpoint: Checkpoint, options: Options, notes: list[str]) -> str:
    if options.name is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.name):
            raise SourceError(
                f"--name {options.name!r}: use letters, digits, '.', '_' and '-', a letter or digit first"
            )
        return options.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.id.rsplit("/", 1)[-1]).lstrip("._-") or "reward-model"
    notes.append(f"the model is called {name!r} (--name)")
    return name


def _chat_template(checkpoint: Checkpoint, options: Options, notes: list[str]) -> str | None:
    template = options.chat_template
    if template is None:
        template = checkpoint.tokenizer.chat_template
    elif not template.strip():
        raise SourceError("--chat-template: the file is empty; leave the option out for the tokenizer's own template")
    if isinstance(template, Mapping):
        names = ", ".join(map(repr, template))
        template = template.get("default")
        which = "none is called 'default'" if template is None else "the one called 'default' is used"
        notes.append(f"of the tokenizer's chat templates ({names}) {which} (--chat-template FILE)")
    if template is None:
        if not options.pair:
            notes.append("the tokenizer has no chat template, so chats are not scored (--chat-template FILE)")
        return None
    if not isinstance(template, str):
        raise SourceError(
            f"the tokenizer's chat template is a {type(template).__name__}, not a text; give it with "
            "--chat-template FILE"
        )
    if "strftime_now" in template:
        notes.append("the chat template asks for today's date; it gets none, so that scores stay the same tomorrow")
    return template
