import json
import shutil
import sys
from pathlib import Path

import onnx_ir as ir
import peft
import pytest
import torch
import transformers
from conversion import run_conversion
from safetensors.torch import load_file, save_file

from plaudit_export.checkpoints import places
from plaudit_export.checkpoints.adapter import WEIGHTS
from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.config_files import ADAPTER_CONFIG
from plaudit_export.errors import ExportError, SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.finish import Exported
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_encoder_checkpoint

IDS = torch.tensor([[9, 8, 7, 50, 60]])


def save_adapter(base: Path, path: Path, *, num_labels: int = 1, **config: object) -> Path:
    """Writes a random LoRA adapter with a random head; its B is not the zero that training starts from."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=num_labels)
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, **config))
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
            elif "modules_to_save" in name:
                parameter.data.normal_(std=0.5)
        tuned.save_pretrained(path)
    return path


def set_adapter_config(adapter: Path, **fields: object) -> None:
    path = adapter / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="module")
def base(causal_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, which has no head, beside which the adapter lies."""
    path = tmp_path_factory.mktemp("models") / "base"
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(causal_checkpoint)
        model.save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(causal_checkpoint).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    path = save_adapter(base, base.parent / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])
    set_adapter_config(path, base_model_name_or_path="../base")
    return path


@pytest.fixture
def copy(adapter: Path, base: Path, tmp_path: Path) -> Path:
    """A copy of the adapter to spoil."""
    path = Path(shutil.copytree(adapter, tmp_path / "copy"))
    set_adapter_config(path, base_model_name_or_path=str(base))
    return path


def peft_score(base: Path, adapter: Path) -> float:
    """What a user of peft gets."""
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        return peft.PeftModel.from_pretrained(model, adapter).eval()(IDS).logits.item()


def test_an_adapter_is_served_with_the_scores_that_peft_gives_it_unmerged(base, adapter, causal_bundle, tmp_path):
    exported = export_checkpoint(str(adapter), tmp_path / "bundle")
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    assert num_nodes(exported) == num_nodes(causal_bundle)
    assert exported.bundle.name == "adapter"
    assert exported.bundle.manifest.source.architecture == "LlamaForSequenceClassification"
    record = next(each for each in exported.bundle.golden if each.item.get("text") == "No.")
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        tuned = peft.PeftModel.from_pretrained(model, adapter).eval()
        assert record.score == tuned(torch.tensor([record.token_ids])).logits.item()
        with tuned.disable_adapter():
            assert abs(record.score - tuned(torch.tensor([record.token_ids])).logits.item()) > 0.01


def num_nodes(exported: Exported) -> int:
    """An adapter that is not merged is more nodes."""
    return len(ir.load(exported.bundle.path / "model.onnx").graph)


def test_merging_changes_the_weights_and_not_the_score(base, adapter):
    checkpoint = load_checkpoint(str(adapter))
    assert checkpoint.kind == "causal"
    with torch.no_grad():
        unmerged = checkpoint.model(IDS).logits.item()
        checkpoint.merge_adapter()
        merged = checkpoint.model(IDS).logits.item()
    assert unmerged == peft_score(base, adapter)
    assert merged == pytest.approx(unmerged, abs=1e-5)
    assert type(checkpoint.model.score) is torch.nn.Linear
    assert not any("lora" in name for name, _ in checkpoint.model.named_parameters())


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [7, 8]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=lambda config: next(iter(config)),
)
def test_every_kind_of_lora_is_loaded_and_merged_as_peft_computes_it(base, tmp_path, config):
    adapter = save_adapter(base, tmp_path / "adapter", **{"target_modules": ["q_proj", "v_proj"]} | config)
    checkpoint = load_checkpoint(str(adapter))
    with torch.no_grad():
        unmerged = checkpoint.model(IDS).logits.item()
        checkpoint.merge_adapter()
        merged = checkpoint.model(IDS).logits.item()
    assert unmerged == peft_score(base, adapter)
    assert merged == pytest.approx(unmerged, abs=1e-5)


def test_a_base_on_the_hub_is_loaded_at_the_revision_that_the_adapter_names(copy, monkeypatch):
    def refuse(repo: str, **options: object) -> None:
        raise OSError(f"{repo} at {options['revision']}")

    monkeypatch.setattr(places, "snapshot_download", refuse)
    set_adapter_config(copy, base_model_name_or_path="org/base", revision="abc")
    with pytest.raises(SourceError, match=r"org/base@abc: .* cannot be downloaded from the hub: org/base at abc"):
        load_checkpoint(str(copy))


def test_the_head_of_an_adapter_replaces_that_of_its_base(tmp_path):
    base = tiny_encoder_checkpoint(tmp_path / "base", architecture="roberta", num_labels=2)
    with quiet():
        body = transformers.AutoModel.from_pretrained(base)
        body.save_pretrained(tmp_path / "body")
    shutil.copy(base / "tokenizer.json", tmp_path / "body")
    shutil.copy(base / "tokenizer_config.json", tmp_path / "body")
    adapter = save_adapter(tmp_path / "body", tmp_path / "adapter", num_labels=3, target_modules=["query"])
    set_adapter_config(adapter, base_model_name_or_path=str(base))
    checkpoint = load_checkpoint(str(adapter))
    assert (checkpoint.kind, checkpoint.config.num_labels) == ("encoder", 3)
    assert checkpoint.model(IDS).logits.shape == (1, 3)


def test_the_tokenizer_is_the_adapters_own_where_it_has_one(base, copy):
    assert load_checkpoint(str(copy)).tokenizer.chat_template is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(copy)
    assert load_checkpoint(str(copy)).tokenizer.chat_template == "{{ messages }}"


def test_without_peft_the_error_says_how_to_install_it(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SourceError, match=r"needs peft: pip install peft$"):
        load_checkpoint(str(adapter))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"task_type": "CAUSAL_LM"},
            r"of a language model \(task type CAUSAL_LM\) without a head: a reward model is one",
        ),
        ({"task_type": None}, "is an adapter that names no task type, not of SEQ_CLS: a reward model is"),
        ({"task_type": "TOKEN_CLS"}, "is an adapter of task type TOKEN_CLS, not of SEQ_CLS: a reward model is"),
        ({"peft_type": "IA3"}, "of type IA3; only LORA"),
        ({"init_lora_weights": "pissa"}, "'pissa' changed the base model's weights"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "no such directory"),
        ({"base_model_name_or_path": "."}, "is an adapter too"),
        ({"from_the_future": 1}, "does not know from_the_future"),
        ({"target_modules": ["nothing"]}, "its adapter cannot be loaded"),
        (
            {"target_modules": ["q_proj"]},
            r"has 8 weights that its base model does not have, such as .*down_proj\.lora_A",
        ),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"]}, r"lacks 4 weights, such as .*up_proj"),
        ({"r": 3}, r"lora_A\.weight in shape \(4, 64\), its base model in \(3, 64\)"),
    ],
)
def test_an_adapter_that_cannot_be_merged_right_is_refused(copy, fields, message):
    set_adapter_config(copy, **fields)
    with pytest.raises(SourceError, match=message) as raised:
        load_checkpoint(str(copy))
    assert "\n" not in str(raised.value)


def test_an_adapter_without_its_head_is_refused_instead_of_scored_at_random(copy):
    weights = load_file(copy / WEIGHTS)
    save_file({name: weight for name, weight in weights.items() if "score" not in name}, copy / WEIGHTS)
    with pytest.raises(SourceError, match="holds no head"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize("shape", [(0, 32), (32,)])
def test_an_adapter_whose_head_has_no_rows_is_refused(copy, shape):
    weights = load_file(copy / WEIGHTS)
    (name,) = (name for name in weights if name.endswith("score.weight"))
    save_file(weights | {name: torch.ones(shape)}, copy / WEIGHTS)
    with pytest.raises(SourceError, match="holds no head"):
        load_checkpoint(str(copy))


def test_an_adapter_with_two_heads_is_refused(copy):
    save_file(load_file(copy / WEIGHTS) | {"v_head.summary.weight": torch.ones(1, 32)}, copy / WEIGHTS)
    with pytest.raises(SourceError, match="holds two heads"):
        load_checkpoint(str(copy))


def test_a_base_that_lacks_more_than_the_head_is_refused(base, copy, tmp_path):
    half = Path(shutil.copytree(base, tmp_path / "half"))
    weights = load_file(half / "model.safetensors")
    gone = "model.layers.0.mlp.up_proj.weight"
    save_file(
        {name: each for name, each in weights.items() if name != gone}, half / "model.safetensors", {"format": "pt"}
    )
    set_adapter_config(copy, base_model_name_or_path=str(half))
    with pytest.raises(SourceError, match=rf"half: 1 missing weights, such as {gone}"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("content", "message"),
    [("pickle", "a pickle can run code"), ("none", f"has no {WEIGHTS}"), ("damaged", "be loaded")],
)
def test_an_adapters_weights_are_whole_safetensors(copy, content, message):
    (copy / WEIGHTS).unlink()
    if content == "pickle":
        (copy / "adapter_model.bin").write_bytes(b"\x80\x04.")
    if content == "damaged":
        (copy / WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(SourceError, match=message):
        load_checkpoint(str(copy))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_adapter_config_is_refused(copy, text):
    (copy / ADAPTER_CONFIG).write_text(text)
    with pytest.raises(SourceError, match=f"its {ADAPTER_CONFIG} "):
        load_checkpoint(str(copy))


def test_an_adapter_with_numbers_that_are_none_is_not_merged(copy):
    weights = load_file(copy / WEIGHTS)
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: weights[name] * float("nan")}, copy / WEIGHTS)
    with pytest.raises(ExportError, match="copy: its adapter cannot be merged: "):
        load_checkpoint(str(copy)).merge_adapter()


def test_a_classifiers_adapter_is_none_of_a_language_model_whatever_head_lies_beside_it(copy):
    set_adapter_config(copy, task_type="CAUSAL_LM")
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, copy / "value_head.safetensors")
    with pytest.raises(SourceError, match=r"weights that its base model does not have, such as .*score"):
        load_checkpoint(str(copy))


def test_a_head_in_a_file_beside_the_adapter_is_refused(copy):
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, copy / "value_head.safetensors")
    with pytest.raises(
        SourceError, match=r"value_head\.safetensors is in the adapter's directory, but peft does not read it"
    ):
        load_checkpoint(str(copy))


def test_a_whole_model_beside_the_adapter_is_told_and_the_adapter_is_taken(base, adapter, copy):
    shutil.copy(base / "model.safetensors", copy)
    checkpoint = load_checkpoint(str(copy))
    with torch.no_grad():
        assert checkpoint.model(IDS).logits.item() == peft_score(base, adapter)
    assert checkpoint.notes == (
        "model.safetensors beside the adapter is not read: the model is the adapter on its base (for the other, give a "
        "directory without adapter_config.json)",
    )


def test_what_a_base_has_for_its_own_task_has_no_part_in_an_adapters_score(base, copy, tmp_path):
    other = Path(shutil.copytree(base, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    replaced = {"lm_head.weight": torch.ones(328, 32), "score.bias": torch.ones(1)}
    save_file(weights | replaced, other / "model.safetensors", {"format": "pt"})
    set_adapter_config(copy, base_model_name_or_path=str(other))
    assert load_checkpoint(str(copy)).notes == ()
    save_file(weights | {"gating.weight": torch.ones(1)}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"other: gating\.weight is a weight of the head that"):
        load_checkpoint(str(copy))


def test_an_adapter_on_a_question_answering_model_leaves_out_the_head_of_that(tmp_path):
    base = tiny_encoder_checkpoint(tmp_path / "base", architecture="roberta")
    with quiet():
        transformers.AutoModelForQuestionAnswering.from_pretrained(base).save_pretrained(base)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["query"])
    checkpoint = load_checkpoint(str(adapter))
    with torch.no_grad():
        assert checkpoint.model(IDS).logits.item() == peft_score(base, adapter)


@pytest.mark.parametrize(
    "config", [{}, {"target_modules": ["q_proj", "embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}]
)
@pytest.mark.parametrize("num_tokens", [329, 300])
def test_an_adapter_whose_embeddings_were_resized_is_put_on_a_base_of_its_size(base, tmp_path, config, num_tokens):
    with quiet(), torch.no_grad():
        torch.manual_seed(6)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
        lora = peft.LoraConfig(task_type="SEQ_CLS", **{"target_modules": ["q_proj"]} | config)
        tuned = peft.get_peft_model(model, lora).eval()
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.normal_(std=0.2)
        tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
        ids = torch.tensor([[9, 8, num_tokens - 1, 50, 60]])
        expected = tuned(ids).logits.item()
    checkpoint = load_checkpoint(str(tmp_path / "adapter"))
    with torch.no_grad():
        assert checkpoint.model(ids).logits.item() == pytest.approx(expected, abs=1e-5)
        checkpoint.merge_adapter()
        assert checkpoint.model(ids).logits.item() == pytest.approx(expected, abs=1e-5)
    assert checkpoint.model.get_input_embeddings().weight.shape[0] == num_tokens


def test_an_adapter_with_an_added_pad_token_is_served_with_the_scores_of_its_training(base, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.config.pad_token_id = tokenizer.pad_token_id
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).eval()
        tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
        tokenizer.save_pretrained(tmp_path / "adapter")
    exported = export_checkpoint(str(tmp_path / "adapter"), tmp_path / "bundle")
    assert exported.parity.batch_invariant
    assert exported.bundle.scoring.pad_token_id == tokenizer.pad_token_id
    assert exported.bundle.scoring.vocab_size == len(tokenizer)
    for record in exported.bundle.golden:
        with torch.no_grad():
            assert record.score == pytest.approx(tuned(torch.tensor([record.token_ids])).logits.item(), abs=1e-5)


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(copy):
    weights = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    torch.save(weights, copy / "adapter_model.bin")
    with pytest.raises(SourceError, match=r"adapter_model\*\.bin is pickled, and never loaded") as raised:
        load_checkpoint(str(copy))
    run_conversion(str(raised.value), copy)
    assert load_file(copy / WEIGHTS).keys() == weights.keys()
