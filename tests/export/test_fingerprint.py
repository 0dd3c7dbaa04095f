"""What is in `scoring` makes the fingerprint, and nothing outside of it."""

import json
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from plaudit_service.bundles.bundle import (
    Head,
    Manifest,
    Normalization,
    NormalizationSource,
    Scoring,
    Source,
    SpecialToken,
    Steps,
    fingerprint,
)

names = st.text(min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
special = st.builds(SpecialToken, text=names, id=st.integers(0, 1 << 20))
heads = st.lists(st.builds(Head, name=names, weight=numbers), min_size=1, max_size=3, unique_by=lambda head: head.name)
required = st.fixed_dictionaries({"model.onnx": hashes, "tokenizer.json": hashes})
optional = st.fixed_dictionaries({}, optional={"model.onnx.data": hashes, "chat_template.jinja": hashes})

SCORING: dict[str, st.SearchStrategy[Any]] = {
    "kind": st.sampled_from(["causal", "encoder", "plain"]),
    "max_tokens": st.integers(1, 1 << 20),
    "vocab_size": st.integers(1, 1 << 20),
    "pad_token_id": st.none() | st.integers(0, 1 << 20),
    "bos": st.none() | special,
    "eos": special,
    "template_tokens": st.dictionaries(names, names | st.lists(names, max_size=2), max_size=2),
    "add_special_tokens": st.booleans(),
    "chat_special_tokens": st.booleans(),
    "append_eos": st.booleans(),
    "strip_newlines": st.booleans(),
    "space_before_eos": st.booleans(),
    "chat_end": st.sampled_from(["as_text", "template", "eos"]),
    "class_token": st.none() | special,
    "pooled_before": st.none() | st.integers(0, 1 << 20),
    "pair": st.booleans(),
    "head": st.sampled_from(["linear", "mlp", "token_logits"]),
    "heads": heads.map(tuple),
    "link": st.sampled_from(["identity", "sigmoid"]),
    "steps": st.none() | st.builds(Steps, token=special, end=names, apart=st.booleans()),
    "normalization": st.none() | st.builds(Normalization, mean=numbers, std=st.floats(1e-6, 1e6)),
    "precision": st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
    "engine": st.sampled_from(["onnx", "vllm"]),
    "weights": st.dictionaries(st.sampled_from(["config.json", "model.safetensors"]), hashes, min_size=1),
    "sha256": st.builds(lambda files, more: files | more, required, optional),
}
OUTSIDE: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True),
    "recipe": st.none() | names,
    "trained_at": st.sampled_from(["end", "tokens"]),
    "tolerance": st.floats(1e-9, 1.0),
    "opset": st.none() | st.integers(1, 99),
    "source": st.builds(Source, id=names, revision=st.none() | names, architecture=names, attention=names),
    "versions": st.dictionaries(names, names, max_size=2),
    "normalization_source": st.none() | st.builds(NormalizationSource, num_texts=st.integers(1, 99), sha256=hashes),
    "sha256": st.fixed_dictionaries({"golden.jsonl": hashes}, optional={"report.json": hashes}),
}


def consistent(fields: dict[str, Any]) -> Scoring:
    """A scoring without the combinations that are refused."""
    if fields["engine"] == "vllm":
        fields |= {"pair": False, "precision": "fp32"}
        fields["sha256"] = {name: digest for name, digest in fields["sha256"].items() if "onnx" not in name}
    else:
        fields["weights"] = {}
    if fields["pair"]:
        fields |= {"strip_newlines": False, "space_before_eos": False, "class_token": None}
    fields["space_before_eos"] &= fields["append_eos"]
    if fields["pair"] or not fields["append_eos"]:
        fields["chat_end"] = "as_text"
    if fields["pad_token_id"] is not None:
        fields["pooled_before"] = None
    others = fields["append_eos"], fields["strip_newlines"], fields["class_token"], fields["pooled_before"]
    if (
        fields["kind"] != "causal"
        or fields["pad_token_id"] is not None
        or any(each not in (None, False) for each in others)
    ):
        fields["steps"] = None
    return Scoring(**fields)


scorings = st.fixed_dictionaries(SCORING).map(consistent)


def manifest(scoring: Scoring, fields: dict[str, Any]) -> Manifest:
    """A manifest whose head was trained where its scoring reads it."""
    return Manifest(scoring=scoring, **fields | ({"trained_at": "steps"} if scoring.steps else {}))


manifests = st.builds(manifest, scorings, st.fixed_dictionaries(OUTSIDE))


def test_the_properties_below_draw_every_field():
    assert SCORING.keys() == Scoring.model_fields.keys()
    assert OUTSIDE.keys() | {"format", "scoring"} == Manifest.model_fields.keys()


@given(st.data(), scorings, st.sampled_from(sorted(SCORING)))
def test_any_change_of_a_scoring_field_or_file_changes_the_fingerprint(data, scoring, field):
    value = data.draw(SCORING[field])
    assume(value != getattr(scoring, field))
    assert fingerprint(scoring.model_copy(update={field: value})) != fingerprint(scoring)


@given(st.data(), manifests, st.sampled_from(sorted(OUTSIDE)))
def test_nothing_outside_of_scoring_changes_the_fingerprint(data, manifest, field):
    changed = manifest.model_copy(update={field: data.draw(OUTSIDE[field])})
    assert fingerprint(changed.scoring) == fingerprint(manifest.scoring)


@given(manifests)
def test_a_manifest_has_the_same_fingerprint_after_it_was_written_and_read(manifest):
    content = json.loads(json.dumps(manifest.model_dump(mode="json"), sort_keys=True))
    assert fingerprint(Manifest.model_validate(content).scoring) == fingerprint(manifest.scoring)


def test_a_bundle_from_before_there_were_later_fields_keeps_its_fingerprint():
    scoring = Scoring.model_validate(
        {
            "kind": "encoder",
            "max_tokens": 8,
            "vocab_size": 9,
            "heads": [{"name": "score"}],
            "sha256": {"model.onnx": "0" * 64, "tokenizer.json": "1" * 64},
        }
    )
    # sha256 of the canonical JSON without `LATER_FIELDS`, from the release before the first of them.
    assert fingerprint(scoring) == "sha256:231fbf0dea3cf6b6133b0aac6896725513cf1824dd985adc1e55c398fc530532"
