import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from plaudit_ppo.errors import PromptError
from plaudit_ppo.rollout.prompts import (
    Prompt,
    count_by_source,
    dealt_prompts,
    encode_prompt,
    encode_prompts,
    mixed_prompts,
    pad_left,
    read_prompts,
    render_chat,
)


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "prompts.jsonl"
        path.write_text(text)
        return read_prompts(path)

    return read


def test_texts_and_chats_are_read_and_empty_lines_skipped(read):
    prompts = read('{"prompt": "one", "id": 7}\n\n{"messages": [{"role": "user", "content": "two"}]}\n')
    assert prompts == [Prompt(text="one"), Prompt(messages=({"role": "user", "content": "two"},))]
    assert [prompt.where.rpartition("/")[2] for prompt in prompts] == ["prompts.jsonl line 1", "prompts.jsonl line 3"]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [{"role": "user", "content": "two"}]},
        {"messages": [{"role": "user", "content": "two"}]},
        {"prompt": None, "messages": [{"role": "user", "content": "two", "tool_calls": None, "name": None}]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "two"}]}], "chosen": [], "rejected": []},
    ],
)
def test_a_chat_may_stand_in_every_form_of_trl(read, record):
    """Conversational prompts, chats under messages, fields that a table left empty, a text as the one part."""
    assert read(json.dumps(record)) == [Prompt(messages=({"role": "user", "content": "two"},))]


USER, OTHER = {"role": "user", "content": "two"}, {"role": "user", "content": "one"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "a", "completion": "b"}, Prompt(text="a")),
        ({"prompt": [USER], "completion": [GOOD]}, Prompt(messages=(USER,))),
        ({"prompt": "a", "chosen": " good", "rejected": " bad"}, Prompt(text="a")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, Prompt(messages=(USER,))),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, Prompt(messages=(USER,))),
        ({"chosen": [OTHER, GOOD, USER, GOOD], "rejected": [OTHER, GOOD, USER]}, Prompt(messages=(OTHER, GOOD, USER))),
        ({"prompt": "two", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": []}, Prompt(messages=(USER,))),
    ],
)
def test_of_completions_and_preference_pairs_the_prompt_is_taken_and_the_rest_kept(read, record, prompt):
    """TRL's forms: prompt and completion, pairs with it, and chats that begin alike, with a text for people."""
    (read_prompt,) = read(json.dumps(record))
    assert read_prompt == prompt
    is_shared = isinstance(record.get("chosen"), list) and not isinstance(record.get("prompt"), list)
    assert read_prompt.columns == {name: value for name, value in record.items() if is_shared or name != "prompt"}


def test_other_columns_are_kept_and_what_is_null_is_not_there(read):
    (prompt,) = read('{"prompt": "a", "label": [1, {"b": null}], "id": 0, "note": null}')
    assert prompt.columns == {"label": [1, {"b": None}], "id": 0}


def test_a_long_prompt_is_refused_or_left_out(tokenizer):
    prompts = [Prompt(text="w2", where="a"), Prompt(text="w2 w3 w4", where="b"), Prompt(text="w5 w6", where="c")]
    with pytest.raises(PromptError, match=r"b: 3 tokens, limit 1 to 2 .* or set long_prompts = \"drop\""):
        encode_prompts(prompts, tokenizer, max_tokens=2)
    encoded = encode_prompts(prompts, tokenizer, max_tokens=2, drop_long=True)
    assert (encoded.prompts, encoded.ids, encoded.dropped) == (prompts[::2], [[2], [5, 6]], prompts[1:2])
    with pytest.raises(PromptError, match=r"all 1 prompts have more than 2 tokens \(max_prompt_tokens\); raise it"):
        encode_prompts(prompts[1:2], tokenizer, max_tokens=2, drop_long=True)


def test_prompts_know_their_source_and_one_with_a_weight_cannot_be_empty(tmp_path):
    for name, count in (("a", 2), ("b", 1)):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x"}\n' * count)
    prompts = read_prompts([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert [prompt.source for prompt in prompts] == [0, 0, 1]
    assert count_by_source(prompts, 2) == [2, 1]
    with pytest.raises(PromptError, match=r"prompts\[1\]: all prompts of this source were left out as too long"):
        count_by_source(prompts[:2], 2)


def test_sources_are_mixed_in_the_shares_of_their_weights_by_hand():
    """Four prompts and two: a pass has six, of which weights of 1 and 2 give two and four."""
    passes = torch.tensor(mixed_prompts([4, 2], [1.0, 2.0], start=0, count=12, seed=0)).split(6)
    for dealt in passes:
        assert sum(index < 4 for index in dealt.tolist()) == 2
        assert sorted(index for index in dealt.tolist() if index >= 4) == [4, 4, 5, 5]
    assert sorted(index for dealt in passes for index in dealt.tolist() if index < 4) == [0, 1, 2, 3]
    assert passes[0].tolist() != passes[1].tolist()


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    start=st.integers(0, 20),
    count=st.integers(1, 20),
)
def test_the_mixed_order_does_not_depend_on_where_a_run_was_continued(sizes, weights, start, count):
    weights = weights[: len(sizes)]
    whole = mixed_prompts(sizes, weights, start=0, count=start + count, seed=1)
    assert whole[start:] == mixed_prompts(sizes, weights, start=start, count=count, seed=1)


def test_what_templates_read_of_a_message_is_kept(read):
    chat = [{"role": "user", "content": "two", "name": "Ann"}, {"role": "assistant", "content": "a", "thinking": "b"}]
    assert read(json.dumps({"prompt": chat}))[0].messages == tuple(chat)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{prompt}", "not JSON"),
        ("3", "not an object (int)"),
        ("{}", "needs either prompt or messages, has the keys none"),
        ('{"question": "a", "chosen": []}', "needs either prompt or messages, has the keys question, chosen"),
        ('{"chosen": "a b", "rejected": "a c"}', "chosen and rejected are two texts without their prompt"),
        ('{"chosen": [{"role": "user"}], "rejected": []}', "begin with different messages"),
        ('{"prompt": "a", "messages": []}', "needs either prompt or messages, has the keys prompt, messages"),
        ('{"prompt": 3}', "prompt: got int; give a list of at least one"),
        ('{"prompt": "\\ud800"}', "prompt contains a lone surrogate"),
        ('{"messages": "a"}', "messages: got str; give a list of at least one"),
        ('{"messages": []}', "messages: got an empty list"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content: missing"),
        ('{"prompt": [{"content": "a"}]}', "prompt[0].role: missing"),
        ('{"prompt": [{"role": "user", "content": "a", "id": "b"}]}', "prompt[0].id: not a field of a message"),
        ('{"prompt": [{"role": "user", "content": "\\ud800"}]}', "prompt[0].content: got a str with a lone surrogate"),
        ('{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}', "prompt[0].content: got a list of dict"),
    ],
)
def test_a_line_that_is_no_prompt_is_named_by_its_number(read, line, says):
    with pytest.raises(PromptError) as caught:
        read('{"prompt": "good"}\n' + line)
    assert "prompts.jsonl line 2: " in str(caught.value)
    assert says in str(caught.value)


def test_a_line_that_is_not_utf8_is_named_by_its_number(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n{"prompt": "\xff"}\n')
    with pytest.raises(PromptError, match=r"line 2: not JSON"):
        read_prompts(path)


@pytest.mark.parametrize("text", ['\ufeff{"prompt": "a"}', '\ufeff\n{"prompt": "a"}'])
def test_a_file_may_begin_with_a_byte_order_mark(read, text):
    assert read(text) == [Prompt(text="a")]


def test_a_missing_and_an_empty_file_are_refused(read, tmp_path):
    with pytest.raises(PromptError, match=r"absent: cannot be read \(No such file or directory\)"):
        read_prompts(tmp_path / "absent")
    with pytest.raises(PromptError, match="holds no prompts"):
        read("\n")


def test_a_prompt_is_never_cut(tokenizer):
    prompt = Prompt(text="w2 w3 w4", where="here")
    assert encode_prompt(prompt, tokenizer, max_tokens=3) == [2, 3, 4]
    with pytest.raises(PromptError, match=r"here: 3 tokens, limit 1 to 2 \(max_prompt_tokens\)"):
        encode_prompt(prompt, tokenizer, max_tokens=2)
    with pytest.raises(PromptError, match="here: 0 tokens"):
        encode_prompt(Prompt(text="", where="here"), tokenizer, max_tokens=2)


def test_a_text_gets_one_bos_also_when_it_begins_with_one(make_tokenizer):
    tokenizer = make_tokenizer(bos_token="w9", eos_token="<eos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="w9 $A", special_tokens=[("w9", 9)])
    assert encode_prompt(Prompt(text="w2"), tokenizer, max_tokens=9) == [9, 2]
    assert encode_prompt(Prompt(text="w9 w2"), tokenizer, max_tokens=9) == [9, 2]


def test_a_special_token_that_the_tokenizer_adds_at_the_end_is_taken_off_and_one_of_the_text_stays(make_tokenizer):
    tokenizer = make_tokenizer(bos_token="w9", eos_token="<eos>")
    ends = [("w9", 9), ("<eos>", 0)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="w9 $A <eos>", special_tokens=ends)
    assert tokenizer("w2 w3")["input_ids"] == [9, 2, 3, 0]
    assert encode_prompt(Prompt(text="w2 w3"), tokenizer, max_tokens=3) == [9, 2, 3]
    assert encode_prompt(Prompt(text="w2 <eos>"), tokenizer, max_tokens=9) == [9, 2, 0]
    assert encode_prompt(Prompt(text="w9 w2"), tokenizer, max_tokens=9) == [9, 2]
    assert encode_prompt(Prompt(text=""), tokenizer, max_tokens=9) == [9]


def test_a_chat_is_rendered_by_the_template(tokenizer):
    chat = Prompt(messages=({"role": "user", "content": "w5"},), where="here")
    with pytest.raises(PromptError, match="here: messages, but the policy's tokenizer has no chat template"):
        encode_prompt(chat, tokenizer, max_tokens=9)
    tokenizer.chat_template = (
        "{% for m in messages %}w2 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w3{% endif %}"
    )
    assert encode_prompt(chat, tokenizer, max_tokens=9) == [2, 5, 3]


@given(num_prompts=st.integers(1, 7), start=st.integers(0, 30), count=st.integers(1, 30), seed=st.integers(0, 3))
def test_the_order_of_prompts_does_not_depend_on_where_a_run_was_continued(num_prompts, start, count, seed):
    whole = dealt_prompts(num_prompts, start=0, count=start + count, seed=seed)
    assert whole[start:] == dealt_prompts(num_prompts, start=start, count=count, seed=seed)


def test_every_pass_deals_every_prompt_once_in_another_order():
    passes = torch.tensor(dealt_prompts(50, start=0, count=100, seed=0)).split(50)
    assert [sorted(order.tolist()) for order in passes] == [list(range(50))] * 2
    assert passes[0].tolist() != passes[1].tolist()


def test_prompts_are_padded_on_the_left():
    """Detail 1: prompts padded left."""
    ids, mask = pad_left([[5], [6, 7, 8]], 1)
    assert ids.tolist() == [[1, 1, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]


def test_a_template_that_reads_the_clock_gives_the_same_prompt_on_every_day(tokenizer):
    """As in the service: no clock, so that a run can be resumed on another day in the same bits."""
    chat = Prompt(messages=({"role": "user", "content": "w5"},), where="here")
    tokenizer.chat_template = (
        "\n{% if strftime_now is defined %}{{ strftime_now('w%d') }}{% else %}w31{% endif %} {{ messages[0].content }}"
    )
    assert encode_prompt(chat, tokenizer, max_tokens=9) == [31, 5]
    assert render_chat(chat.messages, tokenizer, add_generation_prompt=True).startswith("\nw31")  # nothing else changes
    tokenizer.chat_template = "{{ strftime_now('w%d') }} {{ messages[0].content }}"
    with pytest.raises(PromptError, match=r"here: the policy's chat template asks for today's date \(strftime_now\)"):
        encode_prompt(chat, tokenizer, max_tokens=9)


def test_a_chat_that_the_template_refuses_is_named(tokenizer):
    chat = Prompt(messages=({"role": "assistant", "content": "w5"},), where="chats.jsonl line 3")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match=r"chats.jsonl line 3: .*template failed on it \(roles must alternate\)"):
        encode_prompt(chat, tokenizer, max_tokens=9)
