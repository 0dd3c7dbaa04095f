"""The policy's ids are those of its `tokenizer.json`, whatever class transformers takes it for."""

import importlib.util
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Qwen2Config, Qwen2ForCausalLM

from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.models.critic import check_critic_tokens
from plaudit_ppo.models.policy import load_policy

WORDS = ["<eos>", "<pad>", "<bos>", "?", "the", "fox", "12345", "is", "quick"]
TEXT = "the fox  is 12345 é"
IDS = [4, 5, 7, 6, 3]


@pytest.fixture
def checkpoint(tmp_path):
    """A Qwen2-shaped policy whose tokenizer.json knows whole words."""
    config = Qwen2Config(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(WORDS[:3])
    core.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path)
    return tmp_path


def configure(checkpoint, **fields):
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(special | fields))


@pytest.mark.parametrize("named", ["Qwen2Tokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_the_ids_are_those_of_the_file_whatever_class_its_config_names(named, checkpoint):
    configure(checkpoint, tokenizer_class=named)
    _, tokenizer = load_policy(checkpoint)
    assert tokenizer(TEXT)["input_ids"] == IDS
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (0, 1, len(WORDS))
    assert tokenizer.unk_token is None  # only the class names one, and the vocabulary does not have it
    tokenizer.save_pretrained(checkpoint / "saved")
    saved = Tokenizer.from_file(str(checkpoint / "saved" / "tokenizer.json"))
    assert saved.encode(TEXT).ids == IDS


@pytest.mark.parametrize(("add_bos", "leading"), [(True, [2]), (False, []), (None, [])])
def test_a_bos_that_tokenizer_config_asks_for_is_added(add_bos, leading, checkpoint):
    configure(checkpoint, add_bos_token=add_bos)
    assert load_policy(checkpoint)[1](TEXT)["input_ids"] == leading + IDS


@pytest.mark.parametrize(("add_bos", "leading"), [(True, [2]), (False, []), (None, [2])])
def test_a_bos_of_the_file_stays_unless_tokenizer_config_forbids_it(add_bos, leading, checkpoint):
    file = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    file.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    file.save(str(checkpoint / "tokenizer.json"))
    configure(checkpoint, add_bos_token=add_bos)
    assert load_policy(checkpoint)[1](TEXT)["input_ids"] == leading + IDS


def test_a_switch_that_is_neither_true_nor_false_is_refused(checkpoint):
    configure(checkpoint, add_bos_token="false")
    with pytest.raises(CheckpointError, match=r"add_bos_token 'false' is neither true nor false"):
        load_policy(checkpoint)


def test_added_tokens_of_tokenizer_config_are_added(checkpoint):
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    configure(checkpoint, added_tokens_decoder={"9": {"content": "<end>", **flags}})
    assert load_policy(checkpoint)[1]("the<end>")["input_ids"] == [4, 9]


def test_a_critic_is_compared_by_its_file_too(checkpoint):
    check_critic_tokens(checkpoint, load_policy(checkpoint)[1])


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_sentencepiece_model_alone_asks_for_sentencepiece(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(CheckpointError, match=r"needs sentencepiece: pip install sentencepiece") as caught:
        load_policy(checkpoint)
    assert "tiktoken" not in str(caught.value)
