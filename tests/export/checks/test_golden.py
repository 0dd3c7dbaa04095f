from plaudit_export.checks import golden
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
