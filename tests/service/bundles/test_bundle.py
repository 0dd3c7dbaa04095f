import hashlib
import json

import pytest
from tokenizers import Tokenizer

from plaudit_service.bundles.bundle import Head, Normalization, SpecialToken, fingerprint, load_bundle
from plaudit_service.errors import BundleError
from plaudit_service.testing import GOLDEN_TEXTS
from plaudit_service.text.tokenization import Tokenization


def edit_manifest(path, change):
    file = path / "bundle.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_a_bundle_is_loaded_with_its_golden_texts(tiny_bundle):
    bundle = load_bundle(tiny_bundle(name="rm-v2"))
    assert bundle.name == "rm-v2"
    assert len(bundle.golden) == len(GOLDEN_TEXTS)
    assert bundle.fingerprint == fingerprint(bundle.scoring)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "chat_template.jinja", "golden.jsonl"])
def test_one_changed_byte_in_any_file_is_refused_by_name(tiny_bundle, name):
    path = tiny_bundle()
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} has sha256 .* damaged"):
        load_bundle(path)


@pytest.mark.parametrize("name", ["bundle.json", "model.onnx", "tokenizer.json", "golden.jsonl"])
def test_a_missing_file_is_named(tiny_bundle, name):
    path = tiny_bundle()
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(path)


def test_a_link_is_refused_with_the_remedy(tiny_bundle, tmp_path):
    path = tiny_bundle()
    outside = tmp_path / "outside.json"
    (path / "tokenizer.json").rename(outside)
    (path / "tokenizer.json").symlink_to(outside)
    with pytest.raises(BundleError, match=r"tokenizer.json is a link.*cp -rL"):
        load_bundle(path)


def test_a_manifest_cannot_name_a_file_outside_of_the_bundle(tiny_bundle):
    path = tiny_bundle()
    edit_manifest(path, lambda manifest: manifest["scoring"]["sha256"].update({"../secret": "0" * 64}))
    with pytest.raises(BundleError, match=r"bundle.json: scoring.sha256"):
        load_bundle(path)


def rehash(path, name):
    section = "scoring" if name != "golden.jsonl" else None

    def change(manifest):
        hashes = (manifest["scoring"] if section else manifest)["sha256"]
        hashes[name] = hashlib.sha256((path / name).read_bytes()).hexdigest()

    edit_manifest(path, change)


def test_a_file_that_no_hash_covers_is_refused_because_a_graph_could_read_it(tiny_bundle):
    path = tiny_bundle()
    (path / "model.onnx.data").write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"model\.onnx\.data is not in bundle\.json, so no hash covers it"):
        load_bundle(path)


@pytest.mark.parametrize("field", ["score", "heads"])
def test_a_golden_score_that_is_not_finite_is_refused_because_everything_would_equal_it(tiny_bundle, field):
    path = tiny_bundle()
    record = json.loads((path / "golden.jsonl").read_text().splitlines()[0])
    record[field] = float("inf") if field == "score" else [float("inf")]
    (path / "golden.jsonl").write_text(json.dumps(record) + "\n")
    rehash(path, "golden.jsonl")
    with pytest.raises(BundleError, match=r"golden\.jsonl line 1 cannot be read \(a score is not finite\)"):
        load_bundle(path)


@pytest.mark.parametrize("name", ["chat_template.jinja", "golden.jsonl"])
def test_a_file_that_is_not_utf_8_is_refused_without_a_stack_trace(tiny_bundle, name):
    path = tiny_bundle()
    (path / name).write_bytes(b"\xff\xfe")
    rehash(path, name)
    with pytest.raises(BundleError, match=r"cannot be read .*utf-8"):
        load_bundle(path)


@pytest.mark.parametrize("what", ["truncation", "padding"])
def test_a_tokenizer_that_truncates_or_pads_is_refused(tiny_bundle, what):
    path = tiny_bundle()
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(128) if what == "truncation" else tokenizer.enable_padding()
    tokenizer.save(str(path / "tokenizer.json"))
    rehash(path, "tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json truncates or pads"):
        Tokenization(load_bundle(path))


def test_another_format_version_is_refused(tiny_bundle):
    path = tiny_bundle()
    edit_manifest(path, lambda manifest: manifest.update(format=2))
    with pytest.raises(BundleError, match="has format 2, this version of plaudit reads 1"):
        load_bundle(path)


def test_a_manifest_that_is_not_json_is_refused(tiny_bundle):
    path = tiny_bundle()
    (path / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match=r"bundle\.json is not JSON"):
        load_bundle(path)


def test_a_directory_that_is_not_there_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(BundleError, match="does not exist; make one with `plaudit-export"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 63},
        {"vocab_size": 11},
        {"pad_token_id": None},
        {"bos": None},
        {"eos": SpecialToken(text="[SEP]", id=2)},
        {"add_special_tokens": False},
        {"chat_special_tokens": True},
        {"append_eos": True},
        {"strip_newlines": True},
        {"space_before_eos": True},
        {"chat_end": "template"},
        {"class_token": SpecialToken(text="[CLS]", id=1)},
        {"pooled_before": 0},
        {"pair": True},
        {"head": "mlp"},
        {"kind": "plain"},
        {"precision": "fp16"},
        {"heads": (Head(name="score", weight=2.0),)},
        {"normalization": Normalization(mean=0.0, std=1.0)},
        {"sha256": {"model.onnx": "0" * 64, "tokenizer.json": "0" * 64}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_change_that_can_move_a_score_changes_the_fingerprint(tiny_bundle, change):
    scoring = load_bundle(tiny_bundle()).scoring
    assert fingerprint(scoring.model_copy(update=change)) != fingerprint(scoring)


def test_name_and_versions_do_not_change_the_fingerprint(tiny_bundle):
    one, other = tiny_bundle(name="one"), tiny_bundle(name="other")
    edit_manifest(other, lambda manifest: manifest.update(versions={"torch": "9"}))
    assert load_bundle(one).fingerprint == load_bundle(other).fingerprint
