"""Graphs that other exporters made become bundles of kind `plain`, checked against the checkpoint where it is given."""

import json
import shutil
from pathlib import Path

import onnx_ir as ir
import pytest

from plaudit_export.checkpoints.rules import Options
from plaudit_export.cli import main
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_onnx
from plaudit_export.finish import Exported
from plaudit_export.graphs.onnx_source import load_onnx
from plaudit_export.testing import CORPUS, tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.serving.scorer import Scorer


@pytest.fixture
def foreign(encoder_checkpoint: Path, encoder_bundle: Exported, tmp_path: Path) -> Path:
    """What another exporter would have made: the graph gives `logits`, config and tokenizer lie beside it."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    for path in encoder_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, directory)
    model = ir.load(encoder_bundle.bundle.path / "model.onnx")
    model.graph.outputs[0].name = "logits"
    model.producer_name = "someone"
    ir.save(model, directory / "model.onnx")
    return directory


def test_a_foreign_graph_is_served_with_the_scores_of_the_checkpoint_that_it_came_from(
    foreign, encoder_checkpoint, encoder_bundle, tmp_path
):
    exported = export_onnx(foreign, tmp_path / "bundle", checkpoint=str(encoder_checkpoint))
    assert exported.parity.ok
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.scoring.kind, bundle.scoring.max_tokens) == ("plain", encoder_bundle.bundle.scoring.max_tokens)
    assert bundle.scoring.vocab_size == encoder_bundle.bundle.scoring.vocab_size
    assert [each.score for each in bundle.golden] == [each.score for each in encoder_bundle.bundle.golden]
    assert Scorer(bundle).score(CORPUS).floats == Scorer(encoder_bundle.bundle).score(CORPUS).floats
    assert ir.load(bundle.path / "model.onnx").producer_name == "plaudit"


@pytest.mark.parametrize("beside", ["the graph", "the checkpoint"])
def test_texts_are_made_as_the_trainer_that_the_files_name_made_them(foreign, encoder_checkpoint, tmp_path, beside):
    checkpoint = Path(shutil.copytree(encoder_checkpoint, tmp_path / "checkpoint"))
    card = "---\ntags:\n- trl\n- reward-trainer\n---\n- TRL: 0.9.0\n"
    ((foreign if beside == "the graph" else checkpoint) / "README.md").write_text(card)
    notes: list[str] = []
    exported = export_onnx(foreign, tmp_path / "bundle", checkpoint=str(checkpoint), note=notes.append)
    assert exported.bundle.scoring.chat_special_tokens
    assert sum(note.startswith("recipe hf, because README.md names RewardTrainer") for note in notes) == 1


def test_an_encoders_graph_gets_no_eos(foreign, tmp_path):
    with pytest.raises(SourceError, match="--recipe trl: ends texts with EOS, and BertForSequenceClassification is an"):
        export_onnx(foreign, tmp_path / "bundle", Options(recipe="trl"))


def test_without_the_checkpoint_the_references_are_the_graphs_own_and_that_is_said(foreign, tmp_path):
    notes: list[str] = []
    exported = export_onnx(foreign, tmp_path / "bundle", note=notes.append)
    assert exported.parity.max_abs_diff == 0
    assert notes[-1].startswith("no --checkpoint: the references are the graph's own scores")
    assert exported.bundle.manifest.source.attention == "unknown (a foreign graph)"


def test_the_graph_of_another_model_is_refused(foreign, tmp_path, capsys):
    other = tiny_encoder_checkpoint(tmp_path / "other", seed=1)
    assert main(["onnx", str(foreign), str(tmp_path / "bundle"), "--checkpoint", str(other)]) == 1
    assert "are not the checkpoint's own" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


def test_the_onnx_folder_of_a_repository_takes_config_and_tokenizer_from_above(foreign, tmp_path):
    (foreign / "onnx").mkdir()
    (foreign / "model.onnx").rename(foreign / "onnx" / "model.onnx")
    source = load_onnx(foreign / "onnx")
    assert source.checkpoint.id == "foreign"
    assert source.checkpoint.kind == "plain"


def test_external_weights_of_any_name_come_into_the_bundle(foreign, tmp_path):
    model = ir.load(foreign / "model.onnx")
    (foreign / "model.onnx").unlink()
    ir.save(model, foreign / "model.onnx", external_data="model.onnx_data")
    exported = export_onnx(foreign, tmp_path / "bundle")
    assert {path.name for path in exported.bundle.path.iterdir()} == {
        "bundle.json",
        "model.onnx",
        "tokenizer.json",
        "golden.jsonl",
        "report.json",
    }
    (foreign / "model.onnx_data").unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        export_onnx(foreign, tmp_path / "other")


def set_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_graph_is_taken_as_it_is_but_its_checkpoint_is_asked_for_the_class(foreign, encoder_checkpoint, tmp_path):
    own = {"AutoModelForSequenceClassification": "modeling_own.BertForSequenceClassification"}
    set_config(foreign, auto_map=own)
    checkpoint = Path(shutil.copytree(encoder_checkpoint, tmp_path / "checkpoint"))
    set_config(checkpoint, auto_map=own)
    with pytest.raises(SourceError, match="computes the same scores, give --builtin-class"):
        export_onnx(foreign, tmp_path / "bundle", checkpoint=str(checkpoint))
    notes: list[str] = []
    options = Options(builtin_class=True)
    export_onnx(foreign, tmp_path / "bundle", options, checkpoint=str(checkpoint), note=notes.append)
    told = [note for note in notes if note.startswith("auto_map of the config names modeling_own.BertFor")]
    assert [note.partition("; ")[2] for note in told] == [
        "that code is not run, the graph is taken as it is",
        "that code is not run, the scores are those of transformers' BertForSequenceClassification",
    ]


def test_a_pad_token_that_is_none_of_the_graphs_is_refused(foreign):
    set_config(foreign, pad_token_id=-1)
    with pytest.raises(SourceError, match=r"pad_token_id -1 of its config\.json is not one of the model's"):
        load_onnx(foreign)


def rename_output(directory: Path, name: str) -> None:
    model = ir.load(directory / "model.onnx")
    model.graph.outputs[0].name = name
    ir.save(model, directory / "model.onnx")


def fix_shape(directory: Path) -> None:
    model = ir.load(directory / "model.onnx")
    model.graph.inputs[0].shape = ir.Shape([1, 128])
    ir.save(model, directory / "model.onnx")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "model.onnx").unlink(), r"has no model\.onnx"),
        (lambda path: (path / "config.json").unlink(), r"has no config\.json"),
        (lambda path: (path / "model.onnx").write_bytes(b"\xff" * 64), "is not an ONNX graph"),
        (lambda path: rename_output(path, "scores"), "gives scores; a graph of text classification"),
        (fix_shape, "has the fixed shape"),
    ],
)
def test_what_is_no_graph_of_text_classification_is_refused(foreign, spoil, message):
    spoil(foreign)
    with pytest.raises(SourceError, match=message):
        load_onnx(foreign)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_a_graph_that_optimum_made_is_served_with_the_scores_of_checkpoint_and_optimum(architecture, tmp_path):
    runtime = pytest.importorskip("optimum.onnxruntime")
    from optimum.exporters.onnx import main_export

    from plaudit_export.quiet import quiet

    causal = architecture in {"gpt2", "llama"}
    build = tiny_causal_checkpoint if causal else tiny_encoder_checkpoint
    checkpoint = build(tmp_path / "it", architecture=architecture)
    with quiet():
        main_export(str(checkpoint), output=tmp_path / "optimum", task="text-classification")
        second = runtime.ORTModelForSequenceClassification.from_pretrained(tmp_path / "optimum")
    exported = export_onnx(tmp_path / "optimum", tmp_path / "bundle", Options(), checkpoint=str(checkpoint))
    assert exported.parity.ok
    tokenizer = load_onnx(tmp_path / "optimum").checkpoint.tokenizer
    served = Scorer(exported.bundle).score(CORPUS).floats
    expected = [second(**tokenizer(text, return_tensors="pt")).logits.item() for text in CORPUS]
    assert served == pytest.approx(expected, abs=1e-5, rel=1e-5)
    config = json.loads((tmp_path / "optimum" / "config.json").read_text())
    assert config["architectures"] == [exported.bundle.manifest.source.architecture]
