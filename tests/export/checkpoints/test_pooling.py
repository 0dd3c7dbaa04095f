"""Which token a decoder scores is what its trainer decided, in memory, by the pad token."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import trl
from datasets import Dataset

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.cli import main
from plaudit_export.errors import SourceError
from plaudit_export.quiet import quiet
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.serving.scorer import Scorer

PAD, EOS = 0, 3
TEXTS = ["How do I boil an egg? Seven minutes.", "No.", "The quick brown fox<|im_end|>"]
ROWS = [
    {"prompt": "Boil an egg.", "chosen": " Seven minutes.", "rejected": " I cannot."},
    {"prompt": "Tell a story.", "chosen": " Once upon a time.", "rejected": " No."},
]


def pad_of(checkpoint: Any) -> int | None:
    """What the model pools by; the rules of the bundle say the same."""
    pad: int | None = checkpoint.model.config.pad_token_id
    assert derive_rules(checkpoint, Options()).pad_token_id == pad
    return pad


def scores_of(model: Any, base: Path) -> list[float]:
    """Of the texts with EOS appended, one at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        heads = [model(torch.tensor([each if each[-1] == EOS else [*each, EOS]])).logits for each in ids]
    return [head.item() for head in heads]


@dataclass
class Trained:
    """An adapter that TRL trained and saved, and the model as TRL had it in memory."""

    adapter: Path
    base: Path
    model: Any

    def scores(self, pad: int | None) -> list[float]:
        """With this pad token in the config."""
        config = self.model.get_base_model().config
        trained_with, config.pad_token_id = config.pad_token_id, pad
        scores = scores_of(self.model, self.base)
        config.pad_token_id = trained_with
        return scores


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two steps of TRL's RewardTrainer with LoRA on a base whose config and tokenizer have no pad token."""
    directory = tmp_path_factory.mktemp("trl")
    base = tiny_causal_checkpoint(directory / "base", pad="none")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        config = trl.RewardConfig(
            output_dir=str(directory / "adapter"),
            max_steps=2,
            learning_rate=0.05,
            max_length=256,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
        )
        trainer = trl.RewardTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            peft_config=lora,
        )
        trainer.train()
        trainer.save_model()
    return Trained(directory / "adapter", base, trainer.model.eval())


def test_an_adapter_that_trl_trained_on_a_base_without_pad_token_keeps_the_scores_of_its_training(
    trained, tmp_path, capsys
):
    assert json.loads((trained.base / "config.json").read_text()).get("pad_token_id") is None
    assert trained.model.get_base_model().config.pad_token_id == EOS  # TRL's, in memory
    right, without = trained.scores(EOS), trained.scores(None)
    assert min(abs(one - other) for one, other in zip(right, without, strict=True)) > 0.1
    assert main(["checkpoint", str(trained.adapter), str(tmp_path / "bundle"), "--append-eos"]) == 0
    bundle = Scorer(tmp_path / "bundle")
    assert bundle.score(TEXTS).floats == pytest.approx(right, abs=1e-5)
    note = (
        "the base's config has no pad token; trainers set that of the adapter's tokenizer: '<|im_end|>' (3) is taken "
        "(--pad-token TOKEN, or '' for none)"
    )
    assert note in capsys.readouterr().err
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert note in report["notes"]
    assert report["parity"]["batch_invariant"]
    other = load_checkpoint(str(trained.adapter), pad_token="")
    assert pad_of(other) is None
    assert scores_of(other.model, trained.base) == pytest.approx(without, abs=1e-5)


def make_adapter(directory: Path, *, config: str, base_tokenizer: str | None, own: str | None) -> Path:
    """An adapter beside a base: pad tokens of the base's config, its tokenizer, and the adapter's (`none`: no pad)."""
    base = tiny_causal_checkpoint(directory / "base", pad=config)  # type: ignore[arg-type]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = base_tokenizer
    tokenizer.save_pretrained(base)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        peft.get_peft_model(model, lora).save_pretrained(directory / "adapter")
    if own is not None:
        tokenizer.pad_token = None if own == "none" else own
        tokenizer.save_pretrained(directory / "adapter")
    return directory / "adapter"


@pytest.mark.parametrize(
    ("config", "base_tokenizer", "own", "pad", "note"),
    [
        ("none", "<|pad|>", "<|im_end|>", EOS, "that of the adapter's tokenizer: '<|im_end|>' (3) is taken"),
        ("none", "<|pad|>", None, PAD, "that of the base's tokenizer: '<|pad|>' (0) is taken"),
        ("none", None, None, EOS, "the tokenizer has none, and trainers set EOS: '<|im_end|>' (3) is taken"),
        ("none", None, "none", EOS, "the tokenizer has none, and trainers set EOS: '<|im_end|>' (3) is taken"),
        ("eos", "<|im_end|>", "<|pad|>", PAD, "the base's config has the pad token 3; trainers set"),
        ("own", "<|im_end|>", None, PAD, None),
        ("own", "<|pad|>", "<|pad|>", PAD, None),
        ("own", "<|pad|>", "none", PAD, None),
    ],
)
def test_the_pad_token_of_an_adapter_is_its_trainers(tmp_path, config, base_tokenizer, own, pad, note):
    adapter = make_adapter(tmp_path, config=config, base_tokenizer=base_tokenizer, own=own)
    checkpoint = load_checkpoint(str(adapter))
    assert pad_of(checkpoint) == pad
    assert [note in line for line in checkpoint.notes] == [True] if note else checkpoint.notes == ()


def test_a_pad_token_that_was_added_to_the_tokenizer_alone_means_that_the_last_token_is_scored(tmp_path):
    base = tiny_causal_checkpoint(tmp_path / "small", pad="own")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    vocab_size = len(tokenizer)
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
        model.resize_token_embeddings(vocab_size)
        model.save_pretrained(base)
        lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])
        peft.get_peft_model(model, lora).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    tokenizer.save_pretrained(tmp_path / "adapter")
    checkpoint = load_checkpoint(str(tmp_path / "adapter"))
    assert pad_of(checkpoint) is None
    assert f"'<|new|>' ({vocab_size}) is not in the model, so the last token is scored" in checkpoint.notes[0]


def test_a_whole_checkpoint_is_pooled_by_its_config_unless_the_user_says_otherwise(tmp_path):
    source = str(tiny_causal_checkpoint(tmp_path / "it", pad="own"))
    assert pad_of(load_checkpoint(source)) == PAD
    assert pad_of(load_checkpoint(source, pad_token="<|im_end|>")) == EOS
    assert pad_of(load_checkpoint(source, pad_token="")) is None
    with pytest.raises(SourceError, match=r"--pad-token '<none>': the tokenizer of .*it has no such token"):
        load_checkpoint(source, pad_token="<none>")


def test_an_encoder_pools_by_no_pad_token(tmp_path):
    source = str(tiny_encoder_checkpoint(tmp_path / "it"))
    with pytest.raises(
        SourceError,
        match=r"--pad-token: .*it is not a decoder, and an encoder's score does not depend on the pad token",
    ):
        load_checkpoint(source, pad_token="[PAD]")


@pytest.mark.parametrize("pad", [-1, 328, 9_999, "0"])
def test_a_pad_token_that_is_none_of_the_models_is_refused_with_field_and_remedy(causal_checkpoint, tmp_path, pad):
    copy = Path(shutil.copytree(causal_checkpoint, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    with pytest.raises(SourceError) as raised:
        load_checkpoint(str(copy))
    assert "pad_token_id" in str(raised.value)
    assert "\n" not in str(raised.value)
    if type(pad) is int:
        assert f"pad_token_id {pad} of its config.json is not one of the model's 328 tokens (0 to 327)" in str(
            raised.value
        )
        assert "or to null" in str(raised.value)


@pytest.mark.parametrize(
    ("kept", "pad", "note"),
    [
        # Without a file that names it, the pad token is the base's, and so is the chat template.
        (
            ["tokenizer.json"],
            PAD,
            "the adapter's directory has only tokenizer.json of a tokenizer; the rest is taken from the base model",
        ),
        (["special_tokens_map.json"], EOS, "the base's config has the pad token 0; trainers set that of the adapter's"),
        (["tokenizer_config.json"], EOS, "the adapter's directory has only tokenizer_config.json of a tokenizer"),
        (
            ["special_tokens_map.json", "tokenizer.json"],
            EOS,
            "has only special_tokens_map.json, tokenizer.json of a tokenizer",
        ),
    ],
)
def test_an_adapter_with_a_part_of_a_tokenizer_has_the_rest_of_it_from_its_base(tmp_path, kept, pad, note):
    adapter = make_adapter(tmp_path, config="own", base_tokenizer="<|pad|>", own="<|im_end|>")
    (adapter / "chat_template.jinja").unlink()
    (adapter / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|im_end|>"}))
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    for name in {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} - {*kept}:
        (adapter / name).unlink()
    checkpoint = load_checkpoint(str(adapter))
    base = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    assert pad_of(checkpoint) == pad
    assert any(note in line for line in checkpoint.notes)
    assert checkpoint.tokenizer.chat_template == base.chat_template
    assert (checkpoint.tokenizer.bos_token, checkpoint.tokenizer.eos_token) == (base.bos_token, base.eos_token)
    assert checkpoint.tokenizer(TEXTS)["input_ids"] == base(TEXTS)["input_ids"]


def test_an_adapter_with_a_chat_template_alone_has_that_one_on_the_tokenizer_of_its_base(tmp_path):
    adapter = make_adapter(tmp_path, config="own", base_tokenizer="<|pad|>", own=None)
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    checkpoint = load_checkpoint(str(adapter))
    assert checkpoint.tokenizer.chat_template == "{{ messages[0].content }}"
    assert "the adapter's directory has only chat_template.jinja of a tokenizer" in checkpoint.notes[0]
