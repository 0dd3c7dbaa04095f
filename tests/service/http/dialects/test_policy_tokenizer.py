"""A policy's tokenizer says exactly what its special tokens are, and which of them end a turn."""

import json

import pytest

from plaudit_service.errors import SettingsError
from plaudit_service.http.dialects.policy_tokenizer import read_policy_tokens
from plaudit_service.http.dialects.special_tokens import find_foreign, strip_end
from plaudit_service.items import TextItem

GEMMA_4 = """{%- for message in messages -%}
{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' + message.content + '<turn|>\\n' -}}
{%- endfor -%}"""
ADDED = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<tool_call|>", "word"]


def write(folder, *, template=GEMMA_4, generation=None, **config):
    """A policy's directory; of the added tokens all but `word` are special."""
    tokens = [{"id": id_, "content": text, "special": text != "word"} for id_, text in enumerate(ADDED)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens, "model": {}}))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_policy_tokens(folder)


def foreign(text, tokens, known=()):
    found = find_foreign([TextItem(text=text)], tokens, lambda token: token in known)
    return found and found[1]


def test_foreign_is_what_the_policy_declares_and_the_reward_model_lacks_and_nothing_else(tmp_path):
    tokens = write(tmp_path)
    assert foreign("a<|turn>b", tokens) == "<|turn>"
    assert foreign("a<|turn>b<turn|>", tokens, known={"<|turn>"}) == "<turn|>"
    assert foreign("a<pad>b", tokens) == "<pad>"  # its own tokenizer makes no words of this
    assert foreign("a word <|im_start|> [INST] <s>b</s>", tokens) is None


@pytest.mark.parametrize(
    ("completion", "stripped", "finished"),
    [
        ("fine<turn|>", "fine", True),
        ("fine<turn|>\n", "fine", True),
        ("fine<turn|><eos><pad><pad>", "fine", True),
        ("fine<pad>", "fine", False),
        ("call<tool_call|><turn|>", "call<tool_call|>", True),
        ("fine<|turn>", "fine<|turn>", False),
        ("fine<|im_end|>", "fine<|im_end|>", False),
        ("fine", "fine", False),
        ("", "", False),
    ],
)
def test_exactly_the_policys_own_ends_are_taken_off(tmp_path, completion, stripped, finished):
    assert strip_end(completion, write(tmp_path)) == (stripped, finished)


@pytest.mark.parametrize(
    "more",
    [
        {"template": None, "generation": {"eos_token_id": [1, 4]}},
        {"template": None, "chat_template": GEMMA_4},
        {
            "template": None,
            "chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": GEMMA_4}],
        },
        {"template": None, "eos_token": {"content": "<turn|>", "special": True}},
    ],
    ids=["generation_config", "template in the config", "several templates", "EOS"],
)
def test_the_end_of_a_turn_is_known_from_each_file_that_names_it(tmp_path, more):
    assert strip_end("fine<turn|>", write(tmp_path, **more)) == ("fine", True)


@pytest.mark.parametrize(
    "more",
    [
        {"generation": {"eos_token_id": [4, [4], "4", None]}},
        {"template": None, "chat_template": [{"name": ["default"], "template": GEMMA_4}, 5], "eos_token": "<turn|>"},
    ],
    ids=["ids", "names of templates"],
)
def test_what_is_of_no_type_that_it_could_have_is_not_there(tmp_path, more):
    assert strip_end("fine<turn|>", write(tmp_path, **more)) == ("fine", True)


def test_a_tokenizers_files_may_begin_with_a_byte_order_mark(tmp_path):
    write(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tmp_path / name).read_text(), encoding="utf-8-sig")
    assert strip_end("fine<turn|>", read_policy_tokens(tmp_path)) == ("fine", True)


def test_where_padding_is_the_eos_it_ends_a_text(tmp_path):
    assert strip_end("fine<eos>", write(tmp_path, pad_token="<eos>")) == ("fine", True)


def test_a_template_that_fails_leaves_the_eos(tmp_path):
    tokens = write(tmp_path, template="{{ raise_exception('no') }}")
    assert strip_end("fine<turn|><eos>", tokens) == ("fine<turn|>", True)


def test_special_tokens_may_stand_in_the_config_alone(tmp_path):
    config = {
        "eos_token": "<e>",
        "additional_special_tokens": ["<one>", {"content": "<two>"}],
        "extra_special_tokens": {"image_token": "<three>"},
        "added_tokens_decoder": {
            "9": {"content": "<four>", "special": True},
            "10": {"content": "no", "special": False},
        },
        "pad_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = read_policy_tokens(tmp_path)
    assert [foreign(text, tokens) for text in ("<e>", "<one>", "<two>", "<three>", "<four>", "no")] == [
        *("<e>", "<one>", "<two>", "<three>", "<four>"),
        None,
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither tokenizer.json nor tokenizer_config.json; give the directory of the policy's tokenizer"),
        ({"tokenizer.json": "{"}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": "[]"}, "tokenizer.json is not a JSON object"),
        ({"tokenizer.json": '{"added_tokens": [{"id": 1}]}'}, "lacks content, special or id"),
        ({"tokenizer.json": '{"added_tokens": 5}'}, "lacks content, special or id"),
        (
            {"tokenizer.json": '{"added_tokens": [{"id": Infinity, "content": "a", "special": true}]}'},
            "lacks content, special or id",
        ),
        ({"tokenizer_config.json": '{"added_tokens_decoder": []}'}, "names no EOS"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": [1]}'}, "lacks content, special or id"),
        ({"tokenizer_config.json": '{"additional_special_tokens": 5, "chat_template": [5]}'}, "names no EOS"),
        ({"tokenizer_config.json": '{"bos_token": "<s>"}'}, "names no EOS; set eos_token in tokenizer_config.json"),
    ],
)
def test_a_directory_that_is_no_tokenizer_is_named_in_one_line(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_policy_tokens(tmp_path)
    assert str(caught.value).startswith(f"--policy-tokenizer {tmp_path}: ")
    assert "\n" not in str(caught.value)
