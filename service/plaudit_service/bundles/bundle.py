"""The bundle: its manifest, its fingerprint, and the only way to load one, which verifies it.

Knows nothing of engines, tokenization or HTTP.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plaudit_service.errors import BundleError, InvalidRequest
from plaudit_service.items import check_request

FORMAT = 1

MANIFEST = "bundle.json"
GRAPH = "model.onnx"
GRAPH_DATA = "model.onnx.data"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
GOLDEN = "golden.jsonl"
REPORT = "report.json"

# A bundle holds files of these names and no others, so no manifest can name a path outside of it.
ScoringFile = Literal["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"]
OtherFile = Literal["golden.jsonl", "report.json"]
# Of a checkpoint that an engine loads by itself.
WeightsFile = Annotated[str, Field(pattern=r"^(config\.json|\w[\w.-]*\.safetensors)$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# Far above any useful file: what is read whole must not fill the memory, nor its hash take minutes. Weights beside the
# graph may have any size.
_MAX_BYTES = {
    MANIFEST: 1 << 20,
    GRAPH: 1 << 31,  # protobuf's own limit
    TOKENIZER: 1 << 28,
    CHAT_TEMPLATE: 1 << 20,
    GOLDEN: 1 << 28,
    REPORT: 1 << 28,
}
_MAX_TOKEN_ID = (1 << 31) - 1
_HASH_CHUNK_BYTES = 1 << 22


class _Frozen(BaseModel):
    # What stands below a field describes it in docs/reference/bundle.md.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SpecialToken(_Frozen):
    """A token with a meaning of its own, such as BOS."""

    text: str
    """How a text spells it."""
    id: int = Field(ge=0)
    """Its number in the vocabulary."""


class Head(_Frozen):
    """One output of the reward model and its weight in the score."""

    name: str = Field(min_length=1)
    """The label."""
    weight: float = 1.0
    """Its factor in the sum that is the score."""


class Normalization(_Frozen):
    """score = (raw - mean) / std."""

    mean: float
    """Of the raw scores of the reference texts."""
    std: float = Field(gt=0)
    """Their standard deviation; 1 where the mean alone is taken off."""


# Fields of `Scoring` that came after the first bundles. One that has its default stands in no fingerprint, so that
# those bundles keep the fingerprints that they had.
LATER_FIELDS = (
    "template_tokens",
    "chat_special_tokens",
    "strip_newlines",
    "space_before_eos",
    "class_token",
    "pooled_before",
    "head",
    "chat_end",
    "link",
    "steps",
    "engine",
    "weights",
)

Link = Literal["identity", "sigmoid"]
TrainedAt = Literal["end", "steps", "tokens"]


class Steps(_Frozen):
    """What a step is to a process reward model (docs/scoring.md)."""

    token: SpecialToken
    """Ends each step; the head is read at it."""
    end: str = Field(min_length=1)
    """Text with that token, which stands behind each step."""
    apart: bool = False
    """True: prompt, steps and ends are encoded one by one behind BOS, as TRL does, and a prompt has no steps. False: a
    text is encoded whole, and every token of this id ends a step."""


ChatEnd = Literal["as_text", "template", "eos"]


class Scoring(_Frozen):
    """Everything that can change a score, and nothing else; the fingerprint is its hash.

    Fields that are left out of the fingerprint while they have their default: `LATER_FIELDS`. The rules of how a text
    ends, and of the token that is scored: docs/scoring.md.
    """

    kind: Literal["causal", "encoder", "plain"]
    """What the graph is: a decoder, an encoder, or a graph that another exporter made."""
    max_tokens: int = Field(ge=1)
    """The longest text: the usable positions."""
    vocab_size: int = Field(ge=1)
    """Token ids are below it."""
    pad_token_id: int | None = None
    """A causal model is scored at the rightmost token that has another id. null: `pooled_before` says, or the last
    token is scored."""
    bos: SpecialToken | None = None
    """The token that begins a text."""
    eos: SpecialToken | None = None
    """The token that ends a text."""
    template_tokens: dict[str, str | list[str]] = Field(default_factory=dict)
    """What the chat template reads by name besides `bos_token` and `eos_token`."""
    add_special_tokens: bool = True
    """Texts, and prompts with completions, get the tokenizer's special tokens."""
    chat_special_tokens: bool = False
    """A rendered chat gets the tokenizer's special tokens too, but no second BOS."""
    append_eos: bool = False
    """A finished text whose last id is not EOS gets EOS."""
    strip_newlines: bool = False
    """A finished text loses the newlines at its end."""
    space_before_eos: bool = False
    """A finished text gets a space and EOS, before it is encoded."""
    chat_end: ChatEnd = "as_text"
    """How a finished chat ends where EOS is appended to texts: as texts do; as the template ends it; with EOS in place
    of its last newlines."""
    class_token: SpecialToken | None = None
    """Every text gets this token, which is then what is scored."""
    pooled_before: int | None = Field(default=None, ge=0)
    """A causal model is scored at the token before the first one of this id; without one, at the last."""
    pair: bool = False
    """The model scores `tokenizer(prompt, completion)`."""
    head: Literal["linear", "mlp", "token_logits"] = "linear"
    """What the head is; `token_logits`: logits of tokens of a language model."""
    heads: tuple[Head, ...] = Field(min_length=1)
    """The outputs whose weighted sum is the score."""
    link: Link = "identity"
    """What makes a score of that sum: nothing, or 1 / (1 + exp(-sum)), a probability."""
    steps: Steps | None = None
    """Of a process reward model: what a step is. The score is read at the end of the last step."""
    normalization: Normalization | None = None
    """What brings raw scores to a scale."""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """Of the graph's weights and computation."""
    engine: Literal["onnx", "vllm"] = "onnx"
    """What computes the scores: the graph of the bundle, or a vLLM server that loads the checkpoint by itself."""
    weights: dict[WeightsFile, Sha256] = Field(default_factory=dict)
    """With `vllm`: the checkpoint's files, each with its hash."""
    sha256: dict[ScoringFile, Sha256]
    """The bundle's files that can change a score, each with its hash."""

    @model_validator(mode="after")
    def _has_its_files(self) -> Self:
        if TOKENIZER not in self.sha256:
            raise ValueError(f"scoring.sha256 has no entry for {TOKENIZER}")
        if self.engine == "onnx" and (GRAPH not in self.sha256 or self.weights):
            raise ValueError(f"scoring.engine is onnx, but there is no {GRAPH}, or there are weights beside it")
        if self.engine == "vllm" and ({GRAPH, GRAPH_DATA} & self.sha256.keys() or not self.weights):
            raise ValueError(f"scoring.engine is vllm, but there is a {GRAPH}, or there are no weights")
        if self.engine == "vllm" and (self.pair or self.precision != "fp32"):
            raise ValueError("scoring.engine is vllm, whose references are of single texts in fp32")
        return self

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.append_eos and self.eos is None:
            raise ValueError("scoring.append_eos is true, but scoring.eos is null")
        if self.space_before_eos and not self.append_eos:
            raise ValueError("scoring.space_before_eos is true, but scoring.append_eos is false")
        if self.chat_end != "as_text" and (self.pair or not self.append_eos):
            raise ValueError("scoring.chat_end is set, but no EOS is appended to a chat's text")
        if self.pooled_before is not None and self.pad_token_id is not None:
            raise ValueError("scoring.pooled_before and scoring.pad_token_id contradict each other")
        if self.pair and (self.strip_newlines or self.space_before_eos or self.class_token):
            raise ValueError("scoring.pair is true, but rules for the end of a single text are set")
        if self.steps is not None:
            self._check_steps()
        if len({head.name for head in self.heads}) != len(self.heads):
            raise ValueError("scoring.heads has two heads with the same name")
        return self

    @property
    def step_token_id(self) -> int | None:
        """Of the token that ends a step; None: the model knows no steps."""
        return None if self.steps is None else self.steps.token.id

    def _check_steps(self) -> None:
        if self.kind != "causal":
            raise ValueError(f"scoring.steps is set, but kind {self.kind} has no values at tokens")
        others = self.append_eos, self.strip_newlines, self.class_token, self.pad_token_id, self.pooled_before
        if any(other not in (None, False) for other in others):
            raise ValueError("scoring.steps is set, but other rules also say how a text ends or what is scored")


class Source(_Frozen):
    """The checkpoint that was exported."""

    id: str
    """The hub id, or the name of the local directory."""
    revision: str | None = None
    """The commit on the hub."""
    format: str | None = None
    """Whose form of a reward model the checkpoint has (docs/models.md); null: transformers' own."""
    architecture: str
    """The class of the checkpoint."""
    attention: str
    """transformers' attention implementation that the reference scores come from."""


class NormalizationSource(_Frozen):
    """The texts that the normalization was measured on."""

    num_texts: int = Field(ge=1)
    """How many texts were scored."""
    sha256: Sha256
    """The hash of their file."""


class Manifest(_Frozen):
    """The content of `bundle.json`. What can change a score stands in `scoring`."""

    format: Literal[1] = 1
    """The version of this form."""
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The model name that requests use."""
    scoring: Scoring
    """Everything that can change a score."""
    recipe: str | None = None
    """Whose text rules those of `scoring` are. null: of nobody that the exporter knows, or the bundle is older than the
    names of recipes."""
    trained_at: TrainedAt = "end"
    """Where a head was trained to mean something: at the end of a text, at the ends of its steps, at every token."""
    tolerance: float = Field(gt=0)
    """The largest allowed distance of a served score from its reference, over max(1, abs(reference))."""
    opset: int | None = Field(default=None, ge=1)
    """The version of ONNX's operators; null: there is no graph."""
    source: Source
    """Where the bundle came from."""
    versions: dict[str, str]
    """Of the packages that exported it."""
    normalization_source: NormalizationSource | None = None
    """The texts that the normalization was measured on."""
    sha256: dict[OtherFile, Sha256]
    """The bundle's other files, each with its hash."""

    @model_validator(mode="after")
    def _has_golden_texts(self) -> Self:
        if GOLDEN not in self.sha256:
            raise ValueError(f"sha256 has no entry for {GOLDEN}")
        if (self.trained_at == "steps") != (self.scoring.steps is not None):
            raise ValueError(f"trained_at is {self.trained_at}, which contradicts scoring.steps")
        return self


@dataclass(frozen=True)
class Golden:
    """A reference text: the wire item, its token ids, the raw head values and the raw score in float32.

    `along` has the raw head values at every token up to the one that is scored; None where they mean nothing.
    """

    item: Mapping[str, Any]
    token_ids: tuple[int, ...]
    heads: tuple[float, ...]
    score: float
    along: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class Bundle:
    """A verified bundle directory."""

    path: Path
    manifest: Manifest
    chat_template: str | None
    golden: tuple[Golden, ...]

    @property
    def name(self) -> str:
        """The model name that requests use."""
        return self.manifest.name

    @property
    def scoring(self) -> Scoring:
        """What can change a score."""
        return self.manifest.scoring

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:...` of what can change a score."""
        return fingerprint(self.scoring)


def fingerprint(scoring: Scoring) -> str:
    """Identity of everything that can change a score: sha256 of the canonical JSON of `scoring`."""
    fields = Scoring.model_fields
    unused = {
        name
        for name in LATER_FIELDS
        if getattr(scoring, name) == fields[name].get_default(call_default_factory=True, validated_data={})
    }
    return canonical_sha256(scoring.model_dump(mode="json", exclude=unused))


def canonical_sha256(content: Mapping[str, Any]) -> str:
    """`sha256:...` of the canonical JSON: sorted keys, no spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def load_bundle(path: Path | str) -> Bundle:
    """Read and verify a bundle: format, file names, links, and the hash of every file.

    Raises:
        BundleError: with one line that says which file and why.
    """
    path = Path(path)
    try:
        return _load(path)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"bundle {path}: cannot be read ({error}); copy or export it again") from error


def _load(path: Path) -> Bundle:
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise BundleError(f"bundle {path}: {what}; make one with `plaudit-export checkpoint SOURCE BUNDLE`")
    manifest = read_manifest(_regular_file(path, MANIFEST))
    hashes: list[tuple[str, str]] = [*manifest.scoring.sha256.items(), *manifest.sha256.items()]
    _refuse_other_files(path, {MANIFEST, *(name for name, _ in hashes)})
    for name, expected in hashes:
        actual = sha256_of(_regular_file(path, name))
        if actual != expected:
            raise BundleError(
                f"bundle {path}: {name} has sha256 {actual[:12]}..., {MANIFEST} says {expected[:12]}...; "
                "it is damaged or was changed: copy or export it again"
            )
    return Bundle(path, manifest, _read_template(path, manifest), _read_golden(path, len(manifest.scoring.heads)))


def _refuse_other_files(path: Path, known: Collection[str]) -> None:
    """A graph could read weights from a file that no hash covers."""
    for file in sorted(path.iterdir()):
        if file.name not in known:
            raise BundleError(f"bundle {path}: {file.name} is not in {MANIFEST}, so no hash covers it; remove it")


def _regular_file(path: Path, name: str) -> Path:
    file = path / name
    if file.is_symlink():
        raise BundleError(
            f"bundle {path}: {name} is a link, but a bundle holds only plain files; copy the bundle with `cp -rL` "
            "(the cache of a model hub is made of links)"
        )
    if not file.is_file():
        raise BundleError(f"bundle {path}: {name} is missing; copy or export it again")
    _refuse_if_large(file)
    return file


def _refuse_if_large(file: Path) -> None:
    size, limit = file.stat().st_size, _MAX_BYTES.get(file.name)
    if limit is not None and size > limit:
        raise BundleError(f"bundle {file.parent}: {file.name} has {size} bytes, limit {limit}; export it again")


def read_manifest(file: Path) -> Manifest:
    """Read and check a manifest; its hashes are held against nothing yet.

    Raises:
        BundleError: it is too large, no JSON, of another format or of a wrong shape.
    """
    path = file.parent
    _refuse_if_large(file)
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise BundleError(f"bundle {path}: {MANIFEST} is not JSON ({error}); copy or export it again") from error
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise BundleError(
            f"bundle {path}: {MANIFEST} has format {content.get('format')!r}, this version of plaudit reads {FORMAT}; "
            "export it again with this version"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the manifest"
        raise BundleError(f"bundle {path}: {MANIFEST}: {where}: {first['msg']}; export it again") from error


def _read_template(path: Path, manifest: Manifest) -> str | None:
    if CHAT_TEMPLATE not in manifest.scoring.sha256:
        return None
    return _regular_file(path, CHAT_TEMPLATE).read_text(encoding="utf-8")


def _read_golden(path: Path, num_heads: int) -> tuple[Golden, ...]:
    golden = []
    with _regular_file(path, GOLDEN).open(encoding="utf-8") as file:
        lines = file.readlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            text = Golden(
                item=dict(record["item"]),
                token_ids=tuple(map(int, record["token_ids"])),
                heads=tuple(map(float, record["heads"])),
                score=float(record["score"]),
                along=_read_along(record.get("along")),
            )
            if not all(map(math.isfinite, (*text.heads, text.score, *chain.from_iterable(text.along or ())))):
                raise ValueError("a score is not finite")
            if not all(0 <= token_id <= _MAX_TOKEN_ID for token_id in text.token_ids):
                raise ValueError(f"a token id is not between 0 and {_MAX_TOKEN_ID}")
            check_request({"items": [text.item]})
        except (ValueError, KeyError, TypeError, OverflowError, InvalidRequest) as error:
            raise BundleError(
                f"bundle {path}: {GOLDEN} line {number} cannot be read ({error}); export again"
            ) from error
        if wrong := [heads for heads in (text.heads, *(text.along or ())) if len(heads) != num_heads]:
            raise BundleError(f"bundle {path}: {GOLDEN} line {number} has {len(wrong[0])} heads, not {num_heads}")
        golden.append(text)
    if not golden:
        raise BundleError(f"bundle {path}: {GOLDEN} is empty, so nothing shows that the scores are right; export again")
    return tuple(golden)


def _read_along(rows: Any) -> tuple[tuple[float, ...], ...] | None:
    return None if rows is None else tuple(tuple(map(float, row)) for row in rows)
