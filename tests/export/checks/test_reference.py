from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plaudit_export.checkpoints.checkpoint import Checkpoint, load_checkpoint
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.checks.reference import Reference, Tokens, golden_cases
from plaudit_export.errors import SourceError
from plaudit_export.testing import CHATML_TEMPLATE, tiny_causal_checkpoint
from plaudit_service.bundles.bundle import Head

BOS, EOS = 1, 3


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A decoder whose tokenizer puts BOS before every text."""
    return load_checkpoint(str(tiny_causal_checkpoint(tmp_path_factory.mktemp("bos"), add_bos=True)))


@pytest.fixture(scope="module")
def encoder(encoder_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(encoder_checkpoint))


def reference(checkpoint: Checkpoint, **options: object) -> Reference:
    return Reference(checkpoint, derive_rules(checkpoint, Options(**options)))


@pytest.fixture(scope="module")
def plain_ids(causal: Checkpoint) -> Callable[[str], list[int]]:
    return lambda text: causal.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_text_gets_the_tokenizers_special_tokens_unless_the_rules_say_no(causal, plain_ids):
    assert reference(causal).tokenize({"text": "No."}) == Tokens([BOS, *plain_ids("No.")])
    bare = reference(causal, add_special_tokens=False)
    assert bare.tokenize({"text": "No."}) == Tokens(plain_ids("No."))


def test_a_text_that_begins_with_bos_gets_no_second_one(causal, plain_ids):
    assert reference(causal).tokenize({"text": "<|bos|>No."}) == Tokens([BOS, *plain_ids("No.")])


def test_prompt_and_completion_are_one_text(causal):
    item = {"prompt": "What is un", "completion": "believable?"}
    assert reference(causal).tokenize(item) == reference(causal).tokenize({"text": "What is unbelievable?"})


def test_eos_is_appended_only_where_it_is_missing_and_the_text_is_finished(causal, plain_ids):
    appending = reference(causal, append_eos=True)
    expected = Tokens([BOS, *plain_ids("No."), EOS])
    assert appending.tokenize({"text": "No."}) == expected
    assert appending.tokenize({"text": "No.<|im_end|>"}) == expected
    assert appending.tokenize({"text": "No.", "finished": False}).token_ids[-1] != EOS
    assert appending.tokenize({"token_ids": [7]}) == Tokens([7])


def test_a_chat_is_rendered_and_gets_no_special_tokens(causal, plain_ids):
    item = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert reference(causal).tokenize(item) == Tokens(plain_ids(rendered))


@pytest.mark.parametrize(
    ("chat_end", "end"),
    [("as_text", "<|im_end|>\n<|im_end|>"), ("template", "<|im_end|>\n"), ("eos", "<|im_end|>")],
)
def test_a_finished_chat_ends_as_chat_end_says(causal, plain_ids, chat_end, end):
    item = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes"
    rules = replace(derive_rules(causal, Options(append_eos=True)), chat_end=chat_end)
    appending = Reference(causal, rules)
    assert appending.tokenize(item) == Tokens(plain_ids(start + end))
    assert appending.tokenize(item | {"finished": False}) == Tokens(plain_ids(start + "<|im_end|>\n"))
    assert appending.tokenize({"text": "Yes"}).token_ids[-1] == EOS


def test_a_template_gets_no_clock(causal, plain_ids):
    template = "{{ strftime_now('%Y') if strftime_now is defined else '2024' }}:\n{{ messages[0]['content'] }}"
    item = {"messages": [{"role": "user", "content": "Hi"}]}
    assert reference(causal, chat_template=template).tokenize(item) == Tokens(plain_ids("2024:\nHi"))


def test_a_pair_has_token_types(encoder):
    item = {"prompt": "How?", "completion": "So."}
    ids, types = (encoder.tokenizer("How?", "So.")[name] for name in ("input_ids", "token_type_ids"))
    assert 1 in types
    assert reference(encoder, pair=True).tokenize(item) == Tokens(ids, types)
    chat = {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]}
    assert reference(encoder, pair=True).tokenize(chat) == Tokens(ids, types)


def test_a_pair_with_an_empty_completion_is_still_a_pair(encoder):
    tokens = reference(encoder, pair=True).tokenize({"prompt": "How?", "completion": ""})
    separator = encoder.tokenizer.sep_token_id
    assert tokens.token_ids[-2:] == [separator, separator]
    assert tokens.type_ids[-2:] == [0, 1]


def test_the_score_is_transformers_own_weighted_by_head(tmp_path):
    checkpoint = load_checkpoint(str(tiny_causal_checkpoint(tmp_path, num_labels=2)))
    heads = (Head(name="a", weight=0.5), Head(name="b", weight=-2.0))
    record = reference(checkpoint, heads=heads).score({"token_ids": [9, 8, 7]}, Tokens([9, 8, 7]))
    with torch.no_grad():
        first, second = checkpoint.model(torch.tensor([[9, 8, 7]])).logits[0].tolist()
    assert record.heads == (first, second)
    assert record.score == pytest.approx(0.5 * first - 2.0 * second, abs=1e-12)


def test_a_trailing_pad_is_not_what_is_scored(causal):
    score = reference(causal).score
    assert score({}, Tokens([9, 8, 7, 0, 0])).score == pytest.approx(score({}, Tokens([9, 8, 7])).score, abs=1e-5)


def test_golden_cases_cover_every_form_up_to_the_maximum_length(causal):
    notes: list[str] = []
    cases = golden_cases(causal, derive_rules(causal, Options()), [], 256, notes)
    forms = {form for item, _ in cases for form in item}
    lengths = [len(tokens.token_ids) for _, tokens in cases]
    assert forms == {"text", "prompt", "completion", "messages", "token_ids", "finished"}
    assert (min(lengths), max(lengths)) == (1, 256)
    assert notes == []


def test_golden_cases_of_a_pair_model_are_pairs(encoder):
    cases = golden_cases(encoder, derive_rules(encoder, Options(pair=True)), [], 128, [])
    assert {form for item, _ in cases for form in item} == {"prompt", "completion", "messages", "finished"}
    assert max(len(tokens.token_ids) for _, tokens in cases) == 128


def test_a_turn_that_the_template_refuses_is_told_and_left_out(causal):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML_TEMPLATE
    notes: list[str] = []
    cases = golden_cases(causal, derive_rules(causal, Options(chat_template=template)), [], 256, notes)
    assert notes == ["the chat template refuses a chat of system / user / assistant: no system"]
    assert all(item.get("messages", [{}])[0].get("role") != "system" for item, _ in cases)


def test_a_template_that_takes_no_chat_is_refused(causal):
    rules = derive_rules(causal, Options(chat_template="{{ raise_exception('never') }}"))
    with pytest.raises(SourceError, match="takes none of 5 chats"):
        golden_cases(causal, rules, [], 256, [])


def test_a_template_that_never_ends_is_refused(causal):
    rules = derive_rules(causal, Options(chat_template="{% for i in range(10 ** 9) %}{% endfor %}"))
    with pytest.raises(SourceError, match="takes none of 5 chats"):
        golden_cases(causal, rules, [], 256, [])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"text": "a" * 3000}, "item 1: .* tokens; the model takes 1 to 256 tokens"),
        ({"token_ids": [328]}, "ids below 328"),
        ({"token_ids": []}, "0 tokens"),
    ],
)
def test_a_users_item_that_the_model_cannot_take_is_refused(causal, item, message):
    with pytest.raises(SourceError, match=message):
        golden_cases(causal, derive_rules(causal, Options()), [item], 256, [])


def test_a_users_item_of_a_form_that_the_model_lacks_is_refused(encoder):
    with pytest.raises(SourceError, match="no chat template"):
        golden_cases(
            encoder, derive_rules(encoder, Options()), [{"messages": [{"role": "user", "content": "a"}]}], 128, []
        )
    with pytest.raises(SourceError, match="scores prompt and completion as two texts"):
        golden_cases(encoder, derive_rules(encoder, Options(pair=True)), [{"text": "a"}], 128, [])
