"""Reduced precisions: what they cost, when they are refused, and that int8 does not depend on the batch."""

import json

import numpy as np
import onnx_ir as ir
import pytest

from plaudit_export.checkpoints.rules import Options, TextFile
from plaudit_export.checks.text_files import read_items
from plaudit_export.errors import ExportError, SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.graphs import precision as precision_module
from plaudit_export.testing import CORPUS, tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.items import TextItem
from plaudit_service.serving.parity import check
from plaudit_service.serving.scorer import Scorer

WORDS = " ".join(CORPUS).split()


def texts(num_texts: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 30))) for _ in range(num_texts)]


def text_file(num_texts: int) -> TextFile:
    return TextFile([{"text": text} for text in texts(num_texts)], "0" * 64)


@pytest.fixture(scope="module", params=["causal", "encoder", pytest.param("gpt2", marks=pytest.mark.slow)])
def int8(request, tmp_path_factory):
    """An int8 bundle; GPT-2 has products with a bias (Gemm)."""
    folder = tmp_path_factory.mktemp("int8")
    if request.param == "encoder":
        checkpoint = tiny_encoder_checkpoint(folder / "it")
    else:
        architecture = "llama" if request.param == "causal" else "gpt2"
        checkpoint = tiny_causal_checkpoint(folder / "it", architecture=architecture)
    options = Options(precision="int8", calibrate=text_file(60), allow_loss=True)
    return export_checkpoint(str(checkpoint), folder / "bundle", options)


def test_an_int8_bundle_says_what_it_costs_and_states_its_tolerance(int8):
    manifest = int8.bundle.manifest
    assert manifest.scoring.precision == "int8"
    assert Scorer(int8.bundle).model.engine.name == "onnxruntime-cpu-int8"
    assert int8.parity.ok
    worst = max(row.difference / max(1, abs(row.reference)) for row in int8.parity.rows)
    assert 1e-5 < worst <= manifest.tolerance <= 2 * worst
    figures = json.loads((int8.bundle.path / "report.json").read_text())["against_float32"]
    assert (figures["num_texts"], figures["held_out"]) == (20, True)
    assert 0.9 < figures["pair_agreement"] <= 1
    assert 0 < figures["mean_abs_diff"] < figures["max_abs_diff"] < figures["score_std"]
    assert figures["size_bytes"] == (int8.bundle.path / "model.onnx").stat().st_size


def test_every_product_but_the_heads_is_an_integer_product_or_was_left_in_float(int8):
    graph = ir.load(int8.bundle.path / "model.onnx").graph
    weights = [
        node.inputs[1].producer().op_type if node.inputs[1].producer() else "float"
        for node in graph
        if node.op_type in {"MatMul", "Gemm"}
    ]
    assert weights.count("DequantizeLinear") >= 8
    assert weights[-1] == "float"
    kinds = {node.op_type for node in graph}
    assert not any(kind.startswith("Dynamic") for kind in kinds)


def test_an_int8_score_has_the_same_bits_alone_batched_padded_and_continued(int8):
    assert int8.parity.batch_invariant
    model = Scorer(int8.bundle).model
    sequences = model.tokenization.tokenize([TextItem(text=text) for text in texts(40, seed=1)])
    alone = [model.compute([each])[0] for each in sequences]
    rng = np.random.default_rng(2)
    for size in (2, 3, 8, 40):
        order = rng.permutation(len(sequences))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            assert model.compute([sequences[at] for at in batch]) == [alone[at] for at in batch]
    if int8.bundle.scoring.kind == "causal":
        for each, expected in zip(sequences, alone, strict=True):
            cuts = {1, len(each.token_ids) // 2, len(each.token_ids) - 1} - {0, len(each.token_ids)}
            assert {model.compute_continued(each, cut) for cut in cuts} <= {expected}
    assert model.num_engine_failures == 0
    assert len(set(alone)) > 30


@pytest.mark.parametrize("kind", ["causal", pytest.param("encoder", marks=pytest.mark.slow)])
def test_a_float16_bundle_is_near_float32_and_its_head_is_in_float32(kind, request, tmp_path):
    checkpoint = request.getfixturevalue(f"{kind}_checkpoint")
    exported = export_checkpoint(str(checkpoint), tmp_path / "bundle", Options(precision="fp16"))
    assert exported.bundle.scoring.precision == "fp16"
    assert exported.comparison.pair_agreement >= 0.98
    assert exported.comparison.size_ratio < 0.75
    assert not exported.comparison.held_out
    served = check(Scorer(exported.bundle))
    assert served.ok
    # Checked in other files than it is served from, with the same bits.
    assert served.rows == exported.parity.rows
    graph = ir.load(exported.bundle.path / "model.onnx").graph
    heads = [value for name, value in graph.initializers.items() if "score" in name or "classifier" in name]
    layers = [value for name, value in graph.initializers.items() if "norm" in name.lower() and "pooler" not in name]
    assert {value.dtype for value in heads} == {ir.DataType.FLOAT}
    assert {value.dtype for value in layers} == {ir.DataType.FLOAT16}


def test_a_precision_that_ranks_too_many_pairs_otherwise_is_refused_unless_the_loss_is_allowed(
    encoder_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("plaudit_export.exporter.MIN_AGREEMENT", 1.01)
    options = Options(precision="int8", calibrate=text_file(12))
    with pytest.raises(ExportError, match=r"int8 ranks .* of 4 texts' pairs .* at least 101%.*--allow-loss") as raised:
        export_checkpoint(str(encoder_checkpoint), tmp_path / "bundle", options)
    assert raised.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_the_sensitive_products_go_back_to_float32_where_int8_ranks_too_few_pairs_alike(
    encoder_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(precision_module, "_WANTED_AGREEMENT", 1.01)
    options = Options(precision="int8", calibrate=text_file(30), allow_loss=True)
    steps: list[str] = []
    exported = export_checkpoint(str(encoder_checkpoint), tmp_path / "bundle", options, step=steps.append)
    assert exported.comparison.left_in_float == "2 of 8"
    assert any("looking for the sensitive products" in step for step in steps)


def test_calibrating_needs_two_texts_that_the_model_can_take(encoder_checkpoint, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a"}\n{"text": "' + "word " * 999 + '"}\n')
    options = Options(precision="int8", calibrate=TextFile(read_items("--calibrate", file), "0" * 64))
    with pytest.raises(SourceError, match="--calibrate: 1 texts that the model can take"):
        export_checkpoint(str(encoder_checkpoint), tmp_path / "bundle", options)
