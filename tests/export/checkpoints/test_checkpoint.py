import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conversion import run_conversion
from safetensors.torch import load_file, save_file

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.errors import SourceError
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint


@pytest.fixture
def copy(causal_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the causal checkpoint to spoil."""
    return Path(shutil.copytree(causal_checkpoint, tmp_path / "copy"))


def set_config(checkpoint: Path, **fields: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_decoder_is_causal_and_loaded_in_float32(causal_checkpoint):
    checkpoint = load_checkpoint(str(causal_checkpoint))
    assert (checkpoint.id, checkpoint.revision, checkpoint.kind) == ("tiny-llama", None, "causal")
    assert (checkpoint.architecture, checkpoint.attention) == ("LlamaForSequenceClassification", "sdpa")
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}
    assert not checkpoint.token_type_ids
    assert not checkpoint.model.training


def test_a_model_stored_in_half_precision_is_computed_in_float32(copy):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(copy, dtype=torch.bfloat16)
    model.save_pretrained(copy)
    assert {each.dtype for each in load_checkpoint(str(copy)).model.parameters()} == {torch.float32}


def test_an_encoder_is_an_encoder_also_when_its_base_could_take_a_past(encoder_checkpoint, tmp_path):
    bert = load_checkpoint(str(encoder_checkpoint))
    assert (bert.kind, bert.token_type_ids) == ("encoder", True)
    roberta = load_checkpoint(str(tiny_encoder_checkpoint(tmp_path, architecture="roberta")))
    assert (roberta.kind, roberta.token_type_ids) == ("encoder", False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/at/all", "no such directory"),
        ("./also/not/there", "no such directory"),
        (__file__, "is not a directory"),
    ],
)
def test_a_path_without_a_directory_is_refused(source, message):
    with pytest.raises(SourceError, match=message):
        load_checkpoint(source)


def test_a_hub_id_that_cannot_be_reached_gives_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        SourceError, match="no-such-model: no such directory, and it cannot be downloaded from the"
    ) as raised:
        load_checkpoint("plaudit-tests/no-such-model")
    assert "\n" not in str(raised.value)


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"no config\.json"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "names", [["pytorch_model.bin"], ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]]
)
def test_pickled_weights_are_never_loaded_and_the_command_that_converts_them_is_named(copy, names):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # tied: safetensors refuses one storage twice
    for index, name in enumerate(names):
        torch.save(dict(list(weights.items())[index :: len(names)]), copy / name)
    (copy / "training_args.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SourceError, match=r"pytorch_model\*\.bin is pickled, and never loaded") as raised:
        load_checkpoint(str(copy))
    run_conversion(str(raised.value), copy)
    assert load_file(copy / "model.safetensors").keys() == weights.keys()
    assert load_checkpoint(str(copy)).notes == ()


def test_a_directory_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"no \*\.safetensors"):
        load_checkpoint(str(copy))


def test_damaged_weights_are_refused(copy):
    (copy / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(SourceError, match=r"model\.safetensors: cannot be read"):
        load_checkpoint(str(copy))


def test_truncated_weights_are_refused(copy):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"model\.safetensors: cannot be read") as raised:
        load_checkpoint(str(copy))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_truncated_file_is_refused_in_one_line(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match="cannot be loaded") as raised:
        load_checkpoint(str(copy))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("label", ["qwen3", "gpt2", "bert"])
def test_a_checkpoint_labelled_as_another_architecture_is_refused(copy, label):
    names = {"qwen3": "Qwen3", "gpt2": "GPT2", "bert": "Bert"}
    set_config(copy, model_type=label, architectures=[f"{names[label]}ForSequenceClassification"])
    with pytest.raises(SourceError, match=r"missing weights|cannot be loaded") as raised:
        load_checkpoint(str(copy))
    assert "\n" not in str(raised.value)


def test_a_shard_that_the_index_names_and_is_not_there_is_refused(copy):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="20KB")
    next(iter(copy.glob("model-*.safetensors"))).unlink()
    with pytest.raises(SourceError, match=r"model-.*\.safetensors: cannot be read"):
        load_checkpoint(str(copy))


def test_a_language_model_is_no_reward_model(copy):
    set_config(copy, architectures=["LlamaForCausalLM"])
    with pytest.raises(SourceError, match=r"is a LlamaForCausalLM, a language model, and has no head"):
        load_checkpoint(str(copy))


def test_an_encoder_decoder_is_refused(copy):
    set_config(copy, model_type="bart", architectures=["BartForSequenceClassification"], is_encoder_decoder=True)
    with pytest.raises(SourceError, match="encoder-decoder"):
        load_checkpoint(str(copy))


def test_code_from_the_repository_is_never_run(copy, tmp_path):
    ran = tmp_path / "ran"
    (copy / "modeling_custom.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: ...\n")
    remote = {"AutoConfig": "modeling_custom.Config", "AutoModelForSequenceClassification": "modeling_custom.Config"}
    set_config(copy, model_type="custom_reward", auto_map=remote)
    with pytest.raises(SourceError, match="never run"):
        load_checkpoint(str(copy))
    set_config(copy, model_type="llama", architectures=["CustomRewardModel"])
    with pytest.raises(SourceError, match=r"CustomRewardModel.*never run"):
        load_checkpoint(str(copy))
    assert not ran.exists()


def test_a_head_that_was_not_saved_is_refused_instead_of_drawn_at_random(copy):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(copy)
    weights = {name: value for name, value in model.state_dict().items() if name != "score.weight"}
    model.save_pretrained(copy, state_dict=weights)
    with pytest.raises(SourceError, match=r"1 missing weights, such as score\.weight"):
        load_checkpoint(str(copy))


def test_a_bias_of_the_head_that_transformers_would_leave_out_is_refused(copy):
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"score.bias": torch.tensor([0.5])}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"score\.bias is a weight of the head that .* leaves out"):
        load_checkpoint(str(copy))


def test_a_head_of_another_size_is_refused(copy):
    set_config(copy, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(SourceError, match=r"score\.weight|cannot be loaded"):
        load_checkpoint(str(copy))


def test_a_checkpoint_without_tokenizer_is_refused(copy):
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(SourceError, match="tokenizer"):
        load_checkpoint(str(copy))


def test_a_quantized_checkpoint_is_refused(copy):
    set_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(SourceError, match="quantized"):
        load_checkpoint(str(copy))


def test_loading_leaves_the_terminal_and_the_loggers_alone(capfd, tmp_path):
    checkpoint = tiny_causal_checkpoint(tmp_path)
    verbosity = transformers.logging.get_verbosity()
    load_checkpoint(str(checkpoint))
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity
