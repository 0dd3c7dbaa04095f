import json

import pytest

from plaudit_export.checks import golden
from plaudit_export.errors import SourceError
from plaudit_service.items import check_request


def test_built_in_items_are_items_of_the_wire():
    items = [
        *golden.text_items({"bos": "<s>", "eos": "</s>"}),
        *golden.prompt_items(),
        *golden.chat_items(),
        *golden.token_items([5, 6, 7], 100, 0),
    ]
    assert check_request({"items": items}).num_sequences == len(items)


def test_control_tokens_are_put_into_texts_only_where_the_tokenizer_has_them():
    texts = [item["text"] for item in golden.text_items({"bos": "<s>", "eos": "</s>"})]
    assert any(text.startswith("<s>") for text in texts)
    assert any(text.endswith("</s>") for text in texts)
    assert len(golden.text_items({})) == len(golden.TEXTS)


def test_token_items_reach_the_given_length():
    assert [len(item["token_ids"]) for item in golden.token_items([5, 6, 7], 10, None)] == [1, 2, 10]


def test_a_decoder_with_a_pad_token_is_asked_for_padding_at_the_end_and_nothing_else():
    assert [item["token_ids"] for item in golden.token_items([5, 6, 7], 10, 9)][-2:] == [[5, 6, 7, 9, 9], [9, 9]]


def test_a_chat_is_read_as_the_service_hands_it_to_the_template(tmp_path):
    message = {"content": [{"type": "text", "text": "a"}], "role": "user", "name": None, "reasoning_content": "b"}
    path = tmp_path / "golden.jsonl"
    path.write_text(json.dumps({"messages": [message], "completions": ["c"]}))
    (item,) = golden.read_items("--golden", path)
    assert list(item["messages"][0].items()) == [("content", "a"), ("role", "user"), ("reasoning_content", "b")]
    assert item["messages"][1] == {"role": "assistant", "content": "c"}


def test_users_items_are_read_one_per_line(tmp_path):
    items = [{"text": "grün"}, {"prompt": "a", "completion": "b", "finished": False}]
    path = tmp_path / "golden.jsonl"
    path.write_text("\n\n".join(json.dumps(item) for item in items) + "\n")
    assert golden.read_items("--golden", path) == items


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"txt": "a"}', "line 2"),
        ('["text"]', "line 2"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, line, message):
    path = tmp_path / "golden.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(SourceError, match=message):
        golden.read_items("--golden", path)


def test_a_golden_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"nothing\.jsonl: cannot be read"):
        golden.read_items("--golden", tmp_path / "nothing.jsonl")
