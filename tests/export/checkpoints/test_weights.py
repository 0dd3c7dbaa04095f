"""Every stored weight is used, or known to be harmless, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.cli import main
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_encoder_checkpoint


@pytest.fixture
def copy(causal_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the causal checkpoint to add to."""
    return Path(shutil.copytree(causal_checkpoint, tmp_path / "copy"))


def store(path: Path, *names: str, file: str = "model.safetensors") -> None:
    """Adds weights to a file."""
    weights = load_file(path / file) if (path / file).exists() else {}
    save_file(weights | {name: torch.ones(2, 32) for name in names}, path / file, {"format": "pt"})


def set_config(checkpoint: Path, **fields: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(source: Path) -> str:
    with pytest.raises(SourceError) as raised:
        load_checkpoint(str(source))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "gating.0.weight",
        "v_head.summary.weight",
        "score_head.weight",
        "normalizer.mean",
        "regression_layer.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "something.unheard_of",
    ],
)
def test_a_weight_that_the_class_leaves_out_is_refused_by_name(copy, name):
    store(copy, name)
    message = refusal(copy)
    assert f"copy: {name} is a weight" in message
    assert "LlamaForSequenceClassification leaves out, so the scores would differ from the trained ones" in message


def test_weights_of_whole_numbers_are_refused_because_their_scale_is_not_there(copy):
    name = "model.layers.0.self_attn.q_proj.weight"
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {name: (weights[name] * 99).to(torch.int8)}, copy / "model.safetensors", {"format": "pt"})
    assert f"{name} of model.safetensors is stored as I8, so the weights were quantized" in refusal(copy)


def test_an_index_that_names_a_file_elsewhere_is_refused(copy):
    (copy / "model.safetensors").rename(copy.parent / "elsewhere.safetensors")
    save_file({"x": torch.ones(1)}, copy / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"score.weight": "../elsewhere.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names ../elsewhere.safetensors, which is not in the directory" in refusal(copy)


def test_what_is_left_out_is_counted_and_the_command_exits_2(copy, tmp_path, capsys):
    store(copy, "gating.0.weight", "gating.2.weight", "gating.4.weight")
    assert main(["checkpoint", str(copy), str(tmp_path / "bundle")]) == 2
    assert "gating.0.weight is a weight of the head that" in (error := capsys.readouterr().err.splitlines()[-1])
    assert "leaves out, like 2 more, so" in error


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "mtp.layers.0.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.cos_cached",
        "model.layers.0.attn.bias",
        "model.layers.0.attn.masked_bias",
        "model.embeddings.position_ids",
        "cls.predictions.bias",
        "roberta.pooler.dense.weight",
    ],
)
def test_heads_of_pretraining_and_buffers_are_harmless(copy, name):
    store(copy, name)
    assert load_checkpoint(str(copy)).notes == ()


def test_a_head_does_not_hide_behind_the_names_that_transformers_keeps_quiet_about(copy, monkeypatch):
    quiet_about = ["gating", "mtp_", "tower"]
    monkeypatch.setattr(transformers.LlamaForSequenceClassification, "_keys_to_ignore_on_load_unexpected", quiet_about)
    store(copy, "mtp_layers.0.weight", "vision_tower.0.weight")
    assert load_checkpoint(str(copy)).notes == ()
    store(copy, "gating.0.weight")
    assert "gating.0.weight is a weight of the head that" in refusal(copy)


def test_a_normalizer_that_the_config_turns_off_is_harmless(copy):
    store(copy, "normalizer.mean", "normalizer.var")
    assert "normalizer.mean" in refusal(copy)
    set_config(copy, do_normalize=False)
    assert load_checkpoint(str(copy)).notes == ()


def test_a_head_in_a_file_of_its_own_is_refused(copy):
    store(copy, "v_head.summary.weight", file="value_head.safetensors")
    assert "v_head.summary.weight of value_head.safetensors is a weight of the head that" in refusal(copy)
    (copy / "value_head.safetensors").rename(copy / "value_head.bin")
    assert "value_head.bin is pickled, and never loaded" in refusal(copy)


def test_weights_of_an_adapter_without_its_config_are_refused(copy):
    store(copy, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", file="adapter_model.safetensors")
    assert "lora_A.weight of adapter_model.safetensors is a weight that" in refusal(copy)


def test_the_same_weights_twice_are_told_with_the_file_that_is_read(copy):
    shutil.copy(copy / "model.safetensors", copy / "model.fp16.safetensors")
    store(copy, "layers.0.attention.wq.weight", file="consolidated.safetensors")
    assert load_checkpoint(str(copy)).notes == (
        "model.fp16.safetensors is not read: the weights are those of model.safetensors",
    )


def test_left_out_weights_are_found_in_every_shard(copy):
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(copy)
        (copy / "model.safetensors").unlink()
        model.save_pretrained(copy, max_shard_size="20KB")
    assert load_checkpoint(str(copy)).notes == ()
    shard = max(copy.glob("model-*.safetensors"))
    store(copy, "gating.0.weight", file=shard.name)
    index = copy / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["gating.0.weight"] = shard.name
    index.write_text(json.dumps(content))
    assert "gating.0.weight is a weight of the head that" in refusal(copy)


@pytest.mark.parametrize("name", ["id2label", "num_labels"])
def test_a_head_of_one_output_without_labels_in_the_config_is_told_what_to_set(copy, name):
    config = json.loads((copy / "config.json").read_text())
    left = {key: value for key, value in config.items() if key not in {"id2label", "label2id", "num_labels"}}
    (copy / "config.json").write_text(json.dumps(left))
    message = refusal(copy)
    assert "the head has 1 output (score.weight), its config.json 2 labels (transformers assumes 2 where it " in message
    assert message.endswith('set there "id2label": {"0": "score"}')
    set_config(copy, **{"id2label": {"0": "score"}} if name == "id2label" else {"num_labels": 1})
    assert load_checkpoint(str(copy)).labels == ["score" if name == "id2label" else "LABEL_0"]


def test_a_head_of_three_outputs_with_two_labels_is_told_too(tmp_path):
    path = tiny_encoder_checkpoint(tmp_path / "it", num_labels=3)
    set_config(path, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    message = refusal(path)
    assert "the head has 3 outputs (classifier.bias), its config.json 2 labels" in message
    assert message.endswith('"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}')


def test_a_weight_of_another_shape_than_the_config_makes_it_is_named_with_both_shapes(copy):
    set_config(copy, vocab_size=400)
    assert "model.embed_tokens.weight is stored in shape (328, 32), but its config.json needs (400, 32)" in refusal(
        copy
    )


def test_a_head_with_and_without_a_prefix_is_two_heads(copy):
    weights = load_file(copy / "model.safetensors")
    twice = weights | {"model.score.weight": weights["score.weight"] + 1}
    save_file(twice, copy / "model.safetensors", {"format": "pt"})
    assert "holds both score.weight and model.score.weight" in refusal(copy)


@pytest.mark.parametrize("name", ["v_head.pooler.dense.weight", "reward.lm_head.weight", "mtp.scores.weight"])
def test_a_head_is_not_harmless_whatever_else_is_in_its_name(copy, name):
    store(copy, name)
    assert f"{name} is a weight of the head" in refusal(copy)


@pytest.mark.parametrize("name", ["v_head.bin", "reward_head.pt", "score_head.pth"])
def test_a_pickled_head_is_refused_with_its_conversion(copy, name):
    (copy / name).write_bytes(b"")
    assert f"{name} is pickled, and never loaded" in refusal(copy)


@pytest.mark.parametrize("text", ["{}", "[]", "{"])
def test_an_index_that_names_no_weights_is_one_line(copy, text):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / "model.safetensors.index.json").write_text(text)
    assert "names no files of weights" in refusal(copy)


def test_weights_that_give_no_finite_score_are_one_line(copy, tmp_path):
    weights = load_file(copy / "model.safetensors")
    broken = weights | {"score.weight": weights["score.weight"] * float("nan")}
    save_file(broken, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"golden texts get a score from transformers that is not finite"):
        export_checkpoint(str(copy), tmp_path / "bundle")
