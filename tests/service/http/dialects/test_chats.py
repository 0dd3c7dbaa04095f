"""What looks like a chat is a chat or an error, never a plain label."""

import json

import pytest

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects.chats import find_chat, looks_like_chat, read_chat
from plaudit_service.items import Message

CHAT = [{"role": "user", "content": "good"}]
MESSAGES = [Message(role="user", content="good")]


@pytest.mark.parametrize(
    "label",
    [
        CHAT,
        [{"role": "user", "content": "good", "name": None, "tool_calls": None, "refusal": None}],
        [{"role": "user", "content": [{"type": "text", "text": "good", "image": None}]}],
        json.dumps(CHAT),
        json.dumps(CHAT, indent=2),
    ],
)
def test_a_chat_is_read_in_each_of_its_forms(label):
    (message,) = find_chat(label, "labels[0]")
    assert message.to_template() == CHAT[0]


def test_a_message_keeps_what_templates_read():
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"a": [None, {}]}}}]
    given = [{"id": None, **calls[0], "function": {"name": "f", "arguments": {"a": [None, {"b": None}], "c": None}}}]
    chat = [
        {"role": "assistant", "content": None, "tool_calls": given, "reasoning_content": "well", "thinking": "hm"},
        {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"},
    ]
    assert [message.to_template() for message in read_chat(chat, "prompt")] == [
        {"role": "assistant", "reasoning_content": "well", "thinking": "hm", "tool_calls": calls},
        {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"},
    ]


@pytest.mark.parametrize(
    "label",
    [
        None,
        42,
        "42",
        "",
        [],
        {},
        "[1, 2]",
        "[not json",
        ["a", "b"],
        [1, [2]],
        {"answer": 4},
        [{"from": "A", "to": "B"}],
        [{"role": "admin"}],
        "[{'from': 'A', 'to': 'B'}]",
        {"model": "m", "messages": CHAT},  # what a program is to send, for example
        json.dumps({"model": "m", "messages": CHAT}),
        'he wrote "role": "user", "content": "x"',
    ],
)
def test_another_label_is_no_business_of_ours(label):
    assert find_chat(label, "labels[0]") is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            [{"role": "user", "content": "a", "id": 7}],
            r"labels\[0\]\[0\]\.id: not a field of a message that chat templates",
        ),
        ([{"role": "user", "content": 3}], r"labels\[0\]\[0\]\.content: neither a text nor a list of one text part"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}], r"content: 2 parts, and templates join"),
        ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], r"content: neither a text nor"),
        ([{"role": "user", "content": None}], r"content: missing; only a message with tool_calls may"),
        ([{"role": None, "content": "a"}], r"\[0\]\.role: Input should be a valid string"),
        ([*CHAT, "a"], r"labels\[0\]\[1\]: Input should be a valid dictionary"),
        ([{"from": "human", "value": "a"}], r"labels\[0\]\[0\]\.role: Field required"),
        ([CHAT], r"labels\[0\]: contains a chat, but is not itself a list of messages; give a list of"),
        (CHAT[0], r"labels\[0\]: contains a chat, but is not itself a list of messages"),
        ({"messages": CHAT}, r"labels\[0\]: contains a chat, but is not itself a list of messages"),
        (json.dumps({"messages": CHAT}), r"labels\[0\]: contains a chat, but is not itself a list of messages"),
        (str(CHAT), r"labels\[0\]: looks like a chat written as text, but is not JSON"),
        (json.dumps(CHAT)[:-1], r"is not JSON"),
    ],
)
def test_what_looks_like_a_chat_and_cannot_be_used_is_refused_with_the_reason(label, message):
    assert looks_like_chat(label)
    with pytest.raises(InvalidRequest, match=message):
        find_chat(label, "labels[0]")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + json.dumps(CHAT),
        json.dumps(json.dumps(CHAT)),
        "\n".join([json.dumps(CHAT[0])] * 2) + "\n",
    ],
)
def test_a_chat_is_read_with_a_byte_order_mark_dumped_twice_or_a_message_a_line(text):
    assert {message.content for message in find_chat(text, "labels[0]")} == {"good"}


@pytest.mark.parametrize(
    "label",
    [
        {"messages": CHAT, "id": 3},
        json.dumps({"id": 3, "messages": CHAT}),
        str({"id": 3, "messages": CHAT}),
        {"messages": json.dumps(CHAT), "id": 3},
        {"conversations": [{"from": "human", "value": "a"}], "model": "m"},
        "[{'id': 1, 'role': 'user', 'content': 'bad'}]",
        "array([{'content': 'bad', 'role': 'user'}], dtype=object)",
        "\ufeff" + str(CHAT),
        [{"role": "user", "text": "a"}],
        [{"role": "user", "parts": ["a"]}],
        [{"from": "human", "content": "a"}],
        [{"from": "gpt", "value": "a", "weight": 1}],
        [{"Role": "User", "Content": "a"}],
        [{"role": "user"}],
        "[{'role': 'user', 'parts': ['a']}]",
        str([{"from": "human", "value": "a"}]),
    ],
)
def test_a_chat_in_a_form_of_other_data_sets_is_refused(label):
    assert looks_like_chat(label)
    with pytest.raises(InvalidRequest, match=r"^labels\[0\]"):
        find_chat(label, "labels[0]")


@pytest.mark.parametrize(
    "label",
    [
        [{"from": "Coal", "to": "Grid", "value": 75.2}],
        {"from": "EUR", "value": 12, "to": "USD"},
        [{"Role": "Chief", "Content": "a"}],
        [{"role": "user", "email": "a@b.c"}],
        [{"role": "lead", "text": "a"}],
        '"quoted"',
        '"',
        '{"a": 1}\n{"a": 2}',
        "f([{'a': 1}])",
        "{'a': {'role': 'user', 'content': 'x'}}",
        {"messages": ["a"], "id": 3},
    ],
)
def test_records_with_the_same_keys_are_no_chat_without_the_name_of_a_speaker(label):
    for written in (label, json.dumps(label), str(label)):
        assert find_chat(written, "labels[0]") is None
