import pytest

from plaudit_client.errors import InvalidArgument
from plaudit_client.items import normalize_items, num_chars, num_sequences

CHAT = [{"role": "user", "content": "Hi"}]
PART = {"type": "text", "text": "Hi"}
CALLS = [{"function": {"name": "add", "arguments": {"a": 1, "b": None}}}]


@pytest.mark.parametrize(
    ("item", "sequences"),
    [
        ({"text": "a"}, 1),
        ({"text": ""}, 1),
        ({"prompt": "a", "completion": "b", "finished": False}, 1),
        ({"prompt": "a", "completions": ["b"]}, 1),
        ({"prompt": "a", "completions": ["b", "c", ""]}, 3),
        ({"messages": CHAT}, 1),
        ({"messages": CHAT, "completions": ["b", "c"]}, 2),
        ({"token_ids": [1, 2, 3]}, 1),
        ({"token_ids": []}, 1),
    ],
)
def test_every_wire_form_passes_unchanged_and_its_sequences_are_counted(item, sequences):
    assert normalize_items([item]) == [item]
    assert num_sequences(item) == sequences


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        ({"role": "user", "content": "Hi", "name": None, "refusal": None}, {"role": "user", "content": "Hi"}),
        ({"role": "user", "content": [PART]}, {"role": "user", "content": [PART]}),
        ({"role": "user", "content": "Hi", "name": "Ann"}, {"role": "user", "content": "Hi", "name": "Ann"}),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": CALLS,
                "reasoning_content": "I add.",
                "thinking": None,
            },
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
                "reasoning_content": "I add.",
            },
        ),
        (
            {"role": "tool", "content": "3", "tool_call_id": "x"},
            {"role": "tool", "content": "3", "tool_call_id": "x"},
        ),
    ],
)
def test_a_message_is_sent_with_what_chat_templates_read_and_without_what_is_none(message, wire):
    item = {"messages": [message]}
    assert normalize_items([item]) == [{"messages": [wire]}]
    assert num_chars({"messages": [wire]}) > 0


def test_a_plain_string_is_a_text():
    assert normalize_items(["abc"]) == [{"text": "abc"}]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, r"items\[1\]: got int; give a str, or a dict with one of text, "),
        ({}, r"items\[1\]: has the keys none; give one of text, prompt\+completion, "),
        ({"prompt": "a"}, r"items\[1\]: has the keys prompt; give one of"),
        (
            {"prompt": "a", "completion": "b", "completions": []},
            r"items\[1\]: has the keys completion, completions, prompt;",
        ),
        ({"text": "a", "id": 7}, r"items\[1\]: has the keys id, text;"),
        ({"text": None}, r"items\[1\]\.text: got NoneType; give a str"),
        ({"prompt": "a", "completions": []}, r"items\[1\]\.completions: got an empty list; give a list of at least"),
        ({"prompt": "a", "completions": ["b", 3]}, r"items\[1\]\.completions: got a list of int, str;"),
        ({"messages": []}, r"items\[1\]\.messages: got an empty list; give a list of at least one"),
        ({"messages": ["a"]}, r"items\[1\]\.messages: got a list of str; give a list of at least one"),
        (
            {"messages": [{"role": "user"}]},
            r"items\[1\]\.messages\[0\]\.content: missing; give a str, or a list of one",
        ),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]\.content: missing"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\]\.role: missing; give a str"),
        (
            {"messages": [{"role": "user", "content": 1}]},
            r"items\[1\]\.messages\[0\]\.content: got int; give a str, or",
        ),
        (
            {"messages": [{"role": "user", "content": [PART, PART]}]},
            r"messages\[0\]\.content: got a list of dict; give a",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"messages\[0\]\.content: got a list of dict",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "id": 7}]},
            r"messages\[0\]\.id: not a field of a message; leave it",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": "f"}]},
            r"messages\[0\]\.tool_calls: got str; give",
        ),
        ({"messages": [{"role": "user", "content": "a", "name": 3}]}, r"messages\[0\]\.name: got int; give a str"),
        ({"token_ids": [1, True]}, r"items\[1\]\.token_ids: got a list of bool, int; give a list of non-negative int"),
        ({"token_ids": [-1]}, r"items\[1\]\.token_ids: "),
        ({"text": "a", "finished": "yes"}, r"items\[1\]\.finished: got str; give true or false"),
    ],
)
def test_a_wrong_item_is_named_by_its_place_and_its_mistake(item, message):
    with pytest.raises(InvalidArgument, match=message):
        normalize_items(["fine", item])


@pytest.mark.parametrize("items", ["abc", {"text": "a"}, b"abc"])
def test_one_item_that_is_no_list_is_refused_instead_of_scored_letter_by_letter(items):
    with pytest.raises(InvalidArgument, match="give a list of items"):
        normalize_items(items)


def test_no_text_of_an_item_is_in_the_message():
    with pytest.raises(InvalidArgument) as caught:
        normalize_items([{"prompt": ["secret"], "completion": "secret"}])
    assert "secret" not in str(caught.value)


def test_a_lone_surrogate_is_named_by_its_item_because_the_service_could_not():
    with pytest.raises(InvalidArgument, match=r"items\[1\]\.text: got a str with a lone surrogate; give a str"):
        normalize_items(["whole \U0001f600", "broken \ud83d"])


@pytest.mark.parametrize(
    ("item", "chars"),
    [
        ({"text": "abc"}, 3),
        ({"prompt": "ab", "completion": "c"}, 3),
        ({"prompt": "ab", "completions": ["c", "de"]}, 7),
        ({"messages": [{"role": "user", "content": "ab"}], "completions": ["c", "de"]}, 15),
        ({"token_ids": [1, 2]}, 2),
    ],
)
def test_the_characters_of_a_group_count_its_prompt_for_each_completion(item, chars):
    assert num_chars(item) == chars


def test_fields_that_are_none_inside_of_tool_calls_are_left_out_too():
    calls = [{"function": {"name": "f", "arguments": {"city": "Bonn", "unit": None, "days": [None, {"a": None}]}}}]
    (item,) = normalize_items([{"messages": [{"role": "assistant", "tool_calls": calls}]}])
    arguments = {"city": "Bonn", "days": [None, {}]}
    assert item["messages"] == [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    ]
