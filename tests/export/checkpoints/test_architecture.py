"""What a config says that would make the score another: code of its own, layers, normalization, or nothing at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.cli import main
from plaudit_export.errors import SourceError
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_causal_checkpoint

MODELING = """\
import transformers

class LlamaForSequenceClassification(transformers.LlamaForSequenceClassification):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.sigmoid()
        return output
"""
OWN = {"AutoModelForSequenceClassification": "modeling_own.LlamaForSequenceClassification"}


@pytest.fixture
def copy(causal_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the causal checkpoint whose config may be changed."""
    path = Path(shutil.copytree(causal_checkpoint, tmp_path / "copy"))
    (path / "modeling_own.py").write_text(MODELING)
    return path


def set_config(checkpoint: Path, **fields: Any) -> None:
    """Changes fields of config.json; None takes one away."""
    path = checkpoint / "config.json"
    changed = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def refusal(source: Path, **options: Any) -> str:
    with pytest.raises(SourceError) as raised:
        load_checkpoint(str(source), **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "auto_map",
    [
        OWN,
        {"AutoModel": "modeling_own.LlamaForRewardModel"},
        {"AutoModelForTokenClassification": "modeling_own.LlamaForSequenceClassification"},
        {"AutoConfig": "configuration_own.LlamaConfig", **OWN},
    ],
)
def test_a_class_of_the_checkpoints_own_is_refused_also_where_it_has_the_name_of_a_built_in_one(copy, auto_map):
    set_config(copy, auto_map=auto_map)
    message = refusal(copy)
    assert f"names {list(auto_map.values())[-1]} for {list(auto_map)[-1]}" in message
    assert "if transformers' LlamaForSequenceClassification computes the same scores, give --builtin-class" in (message)


@pytest.mark.parametrize(
    "auto_map",
    [
        "modeling_own.LlamaForSequenceClassification",
        ["modeling_own.LlamaForSequenceClassification"],
        {"AutoModelForRewardModel": "own.RewardModel"},
    ],
)
def test_code_for_an_auto_class_that_is_not_known_to_be_harmless_is_refused(copy, auto_map):
    set_config(copy, auto_map=auto_map)
    assert "custom code of the checkpoint, which is never run" in refusal(copy)


def test_that_the_built_in_class_is_right_is_said_by_an_option_and_told(copy, tmp_path, capsys):
    ids = torch.tensor([[9, 8, 7]])
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(copy)
        built_in = model(ids).logits.item()
    set_config(copy, auto_map=OWN)
    checkpoint = load_checkpoint(str(copy), builtin_class=True)
    with torch.no_grad():
        assert checkpoint.model(ids).logits.item() == built_in
    assert main(["checkpoint", str(copy), str(tmp_path / "no")]) == 2
    assert (
        main(["checkpoint", str(copy), str(tmp_path / "bundle"), "--builtin-class", "--golden-max-tokens", "60"]) == 0
    )
    note = (
        "auto_map of the config names modeling_own.LlamaForSequenceClassification for "
        "AutoModelForSequenceClassification; that code is not run, the scores are those of transformers' "
        "LlamaForSequenceClassification"
    )
    assert f"note: {note}" in capsys.readouterr().err
    assert note in json.loads((tmp_path / "bundle" / "report.json").read_text())["notes"]


def test_code_for_another_task_than_scoring_is_told_and_not_refused(copy):
    set_config(copy, auto_map={"AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"})
    (note,) = load_checkpoint(str(copy)).notes
    assert note.startswith("auto_map of the config names modeling_own.LlamaForCausalLM for AutoModelForCausalLM; that")


def test_a_tokenizer_class_of_the_checkpoints_own_is_told(copy):
    path = copy / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    (note,) = load_checkpoint(str(copy)).notes
    assert note == (
        "auto_map of tokenizer_config.json names tokenization_own.OwnTokenizer; that code is not run, the tokens are "
        "those of tokenizer.json"
    )
    (copy / "tokenizer.json").unlink()
    assert "custom code, which is never run, and there is no tokenizer.json" in refusal(copy)


def test_the_base_of_an_adapter_is_held_to_the_same(copy, tmp_path):
    peft = pytest.importorskip("peft")
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(copy)
        lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        peft.get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    set_config(copy, auto_map=OWN)
    assert "computes the same scores, give --builtin-class" in refusal(tmp_path / "adapter")
    assert load_checkpoint(str(tmp_path / "adapter"), builtin_class=True).notes[0].startswith("auto_map of the config")
    # An adapter of a classifier is trained on transformers' classifier, whatever code a base has for language models.
    set_config(copy, architectures=["LlamaForCausalLM"], auto_map={"AutoModelForCausalLM": "own.LlamaForCausalLM"})
    assert len(load_checkpoint(str(tmp_path / "adapter")).notes) == 1
    # What is behind the base's head is not behind the adapter's.
    set_config(copy, auto_map={}, function_to_apply="sigmoid")
    set_file(
        copy, "modules.json", modules("sentence_transformers.models.Transformer", "sentence_transformers.models.Dense")
    )
    assert load_checkpoint(str(tmp_path / "adapter")).notes == ()
    set_config(copy, do_normalize=True)
    assert "do_normalize" in refusal(tmp_path / "adapter")


@pytest.mark.parametrize("field", ["do_normalize", "normalize_reward", "normalize_rewards"])
def test_a_config_that_normalizes_scores_after_the_head_is_refused(copy, field):
    set_config(copy, **{field: True})
    assert f"its config.json says {field}" in refusal(copy)
    set_config(copy, **{field: False})
    assert load_checkpoint(str(copy)).kind == "causal"


def test_labels_that_are_not_numbered_from_0_are_refused(copy):
    set_config(copy, id2label={"5": "score"})
    assert "id2label of its config.json names the heads 5; number them from 0 on" in refusal(copy)


def test_a_config_without_architectures_is_told_what_is_missing(copy):
    set_config(copy, architectures=None)
    expected = (
        'its config.json has no architectures, where a reward model of model_type llama has "architectures": ["Llam'
    )
    assert expected in refusal(copy)
    set_config(copy, architectures=["LlamaForSequenceClassification"])
    assert load_checkpoint(str(copy)).architecture == "LlamaForSequenceClassification"
    set_config(copy, architectures=None, model_type="cohere")
    assert "no architectures, and transformers has no *ForSequenceClassification class" in refusal(copy)


def test_a_class_of_another_family_than_the_model_type_is_told(copy):
    set_config(copy, architectures=["Qwen2ForSequenceClassification"])
    checkpoint = load_checkpoint(str(copy))
    assert checkpoint.architecture == "LlamaForSequenceClassification"
    assert checkpoint.notes[0] == (
        "architectures names Qwen2ForSequenceClassification, and model_type llama; the model is what transformers "
        "makes of the latter, LlamaForSequenceClassification"
    )


def test_a_language_model_is_told_what_would_make_it_a_reward_model(copy):
    set_config(copy, architectures=["LlamaForCausalLM"])
    assert "is a LlamaForCausalLM, a language model, and has no head" in refusal(copy)
    assert "name the tokens with --token-logits TOKEN=WEIGHT" in refusal(copy)
    (copy / "value_head.safetensors").write_bytes(b"")
    assert "score.weight is a weight of the head that transformers' LlamaModel leaves out" in refusal(copy)


def test_a_transformers_that_names_keys_and_values_otherwise_makes_no_decoder_an_encoder(copy, monkeypatch):
    forward = transformers.LlamaModel.forward

    def renamed(self, input_ids=None, *, cache=None, **others):  # as 5.24 does
        return forward(self, input_ids, past_key_values=cache, **others)

    monkeypatch.setattr(transformers.LlamaModel, "forward", renamed)
    assert "LlamaModel is a decoder, but in transformers" in refusal(copy)
    assert "takes no past_key_values; pip install 'transformers<5.24'" in refusal(copy)


HYBRID = {
    "qwen3_next": {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1},
    "jamba": {"num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4},
    "minimax": {"num_key_value_heads": 2, "num_local_experts": 2},
}


@pytest.mark.parametrize("model_type", sorted(HYBRID))
def test_hybrid_and_linear_attention_are_refused_by_name(causal_checkpoint, tmp_path, model_type):
    config = transformers.AutoConfig.for_model(
        model_type, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=328, **HYBRID[model_type]
    )
    shutil.copytree(causal_checkpoint, tmp_path / "it")
    class_name = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__
    config.architectures = [class_name]
    config.save_pretrained(tmp_path / "it")
    assert f"{class_name}: hybrid or linear attention is not supported" in refusal(tmp_path / "it")


def test_layers_that_all_attend_are_no_hybrid(tmp_path):
    checkpoint = load_checkpoint(str(tiny_causal_checkpoint(tmp_path / "it", architecture="gemma2")))
    assert set(checkpoint.config.layer_types) == {"full_attention", "sliding_attention"}


SIGMOID = "torch.nn.modules.activation.Sigmoid"


def set_file(checkpoint: Path, name: str, content: Any) -> None:
    (checkpoint / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sentence_transformers": {"activation_fn": SIGMOID, "version": "4.1.0"}}, "sentence_transformers.activation"),
        pytest.param(
            {"sbert_ce_default_activation_function": SIGMOID},
            "sbert_ce_default_activation_function of config.json names",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"function_to_apply": "sigmoid"},
            "function_to_apply of config.json names sigmoid, which a pipeline",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_activation_behind_the_head_is_told_with_the_score_that_is_served(copy, fields, named, tmp_path, capsys):
    set_config(copy, **fields)
    (note,) = load_checkpoint(str(copy)).notes
    assert note.startswith(named)
    assert note.endswith(
        "here scores are that output without it; to get the activated score, compute 1 / (1 + "
        "exp(-score)), as /classify answers"
    )
    assert main(["checkpoint", str(copy), str(tmp_path / "bundle"), "--golden-max-tokens", "60"]) == 0
    assert f"note: {note}" in capsys.readouterr().err
    assert note in json.loads((tmp_path / "bundle" / "report.json").read_text())["notes"]


def test_an_activation_in_the_files_of_sentence_transformers_is_told_and_what_it_does_to_texts_too(copy):
    content = {
        "activation_fn": "torch.nn.modules.activation.Tanh",
        "prompts": {"rm": "Rate: "},
        "default_prompt_name": "rm",
    }
    set_file(copy, "config_sentence_transformers.json", content)
    set_file(copy, "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    activation, prompt, case = load_checkpoint(str(copy)).notes
    assert case.startswith("sentence_bert_config.json says do_lower_case")
    assert activation.startswith("activation_fn of config_sentence_transformers.json names Tanh")
    assert activation.endswith("to get the activated score, compute Tanh of raw scores")
    assert prompt.startswith("config_sentence_transformers.json puts the prompt 'Rate: ' before every text; texts are")


def test_an_activation_that_changes_nothing_is_not_told(copy):
    identity = "torch.nn.modules.linear.Identity"
    set_config(copy, sentence_transformers={"activation_fn": identity}, function_to_apply="none")
    set_file(copy, "config_sentence_transformers.json", {"activation_fn": identity, "prompts": {"a": ""}})
    assert load_checkpoint(str(copy)).notes == ()
    set_file(copy, "config_sentence_transformers.json", {"prompts": {"a": "b"}, "default_prompt_name": ["a"]})
    assert load_checkpoint(str(copy)).notes == ()


def test_the_classes_of_a_softmax_that_the_config_applies_are_not_summed_by_a_guess(tmp_path):
    source = tiny_causal_checkpoint(tmp_path / "it", num_labels=3, problem_type="multi_label_classification")
    assert derive_rules(load_checkpoint(str(source)), Options()).heads
    set_config(source, function_to_apply="softmax")
    with pytest.raises(SourceError, match=r"3 heads .* of a softmax: the config does not say what the score is"):
        derive_rules(load_checkpoint(str(source)), Options())


def test_a_pipeline_of_the_checkpoints_own_is_refused_unless_the_built_in_class_is_right(copy):
    own = {"impl": "pipeline.RewardPipeline", "pt": ["AutoModelForSequenceClassification"]}
    set_config(copy, custom_pipelines={"reward": own})
    assert "custom_pipelines of the config names pipeline.RewardPipeline for reward: custom code of the checkpoint" in (
        refusal(copy)
    )
    (note,) = load_checkpoint(str(copy), builtin_class=True).notes
    assert note.startswith("custom_pipelines of the config names pipeline.RewardPipeline for reward; that code is not")
    set_config(copy, custom_pipelines={"chat": {"impl": "pipeline.Chat", "pt": ["AutoModelForCausalLM"]}})
    assert len(load_checkpoint(str(copy)).notes) == 1
    set_config(copy, custom_pipelines={"reward": "pipeline.RewardPipeline"})
    assert "names pipeline.RewardPipeline for reward: custom code" in refusal(copy)
    for classes in (5, [["AutoModel"]]):
        set_config(copy, custom_pipelines={"reward": own | {"pt": classes}})
        assert "names pipeline.RewardPipeline for reward: custom code" in refusal(copy)


def modules(*names: str) -> list[dict[str, Any]]:
    return [{"idx": at, "name": str(at), "path": f"{at}_it", "type": name} for at, name in enumerate(names)]


def test_a_module_with_weights_behind_the_encoder_is_refused_by_name(encoder_checkpoint, tmp_path):
    copy = Path(shutil.copytree(encoder_checkpoint, tmp_path / "encoder"))
    models = "sentence_transformers.models"
    set_file(copy, "modules.json", modules(f"{models}.Transformer"))
    assert load_checkpoint(str(copy)).notes == ()
    set_file(copy, "modules.json", modules(f"{models}.Transformer", f"{models}.Pooling", f"{models}.Dense"))
    assert f"modules.json names {models}.Dense after the encoder" in refusal(copy)
    (note,) = load_checkpoint(str(copy), builtin_class=True).notes
    assert note.startswith(f"modules.json names {models}.Pooling, {models}.Dense, which sentence-transformers runs")
    set_file(copy, "modules.json", modules(f"{models}.Transformer", f"{models}.Pooling"))
    assert len(load_checkpoint(str(copy)).notes) == 1
    (copy / "modules.json").write_text("[")
    assert "its modules.json cannot be read" in refusal(copy)


@pytest.mark.parametrize(("fields", "std"), [({"mean": 0.5, "std": 2.0}, 2), ({"mean": 0.5, "var": [4.0]}, 2)])
def test_a_mean_and_a_deviation_of_the_config_are_told_and_applied_on_demand(copy, fields, std):
    set_config(copy, **fields)
    checkpoint = load_checkpoint(str(copy))
    rules = derive_rules(checkpoint, Options())
    assert rules.normalization is None
    assert f"the trainer kept (raw - 0.5) / {std}; it is not applied, scores are raw (--normalize saved)" in rules.notes
    applied = derive_rules(checkpoint, Options(normalize_saved=True)).normalization
    assert (applied.mean, applied.std) == (0.5, pytest.approx(std, rel=1e-7))
    set_config(copy, mean=[1, 2])
    assert "mean [1, 2] is not one finite number" in refusal(copy)
    set_config(copy, mean=10**400)
    assert "0 is not one finite number" in refusal(copy)
