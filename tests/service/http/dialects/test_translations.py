"""Requests to items and scores to answers, as each trainer's own source reads and writes them."""

import json

import pytest

from plaudit_service.errors import InvalidRequest, NotJson
from plaudit_service.http.dialects import llamafactory, openrlhf, slime, vllm
from plaudit_service.http.dialects.dialect import Answered, Chosen
from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.items import ChatItem, Message, PromptItem, TextItem, TokenItem

CHAT = [{"role": "user", "content": "good"}]
MESSAGES = [Message(role="user", content="good")]


def read(dialect, body, **parameters):
    return dialect.ROUTES[0].read(json.dumps(body).encode(), parameters, KnownTokens())


def answered(*scores):
    return Answered(Chosen("rm"), scores, [3] * len(scores), "abc", 1_700_000_000)


def test_openrlhf_queries_are_texts_and_get_rewards_scores_and_logs_of_numbers():
    asked = read(openrlhf, {"query": ["a b", "c"], "prompts": ["a", "c"], "labels": [None, "x"]})
    assert asked.items == [TextItem(text="a b", finished=False), TextItem(text="c", finished=False)]
    assert asked.write(answered(1.5, -2.0)) == {
        "rewards": [1.5, -2.0],
        "scores": [1.5, -2.0],
        "extra_logs": {"num_tokens": [3.0, 3.0]},
    }


def test_openrlhf_empty_lists_get_empty_lists():
    asked = read(openrlhf, {"query": [], "prompts": [], "labels": []})
    assert asked.items == []
    assert asked.write(answered()) == {"rewards": [], "scores": [], "extra_logs": {"num_tokens": []}}


@pytest.mark.parametrize(
    ("end", "finished"), [("<|im_end|>", True), ("<|im_end|>\n", True), ("</s>", True), ("", False), ("<br>", False)]
)
def test_an_openrlhf_label_that_is_the_chat_makes_a_chat_without_the_policys_end(end, finished):
    prompt = "<|im_start|>user\ngood<|im_end|>\n<|im_start|>assistant\n"
    asked = read(openrlhf, {"query": [f"{prompt}fine{end}"], "prompts": [prompt], "labels": [CHAT]})
    completion = "fine" if finished else f"fine{end}"
    assert asked.items == [ChatItem(messages=MESSAGES, completions=[completion], finished=finished)]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"query": ["a"], "prompts": []}, None),
        ({"query": ["a"], "prompts": ["a", "b"]}, "prompts"),
        ({"query": ["a"], "labels": [1, 2]}, "labels"),
        ({"query": "a"}, "query"),
        ({"query": [1]}, "query[0]"),
        ({}, "query"),
        ({"query": ["b"], "prompts": ["a"], "labels": [CHAT]}, "query[0]"),
        ({"query": ["b"], "labels": [CHAT]}, "prompts[0]"),
        (
            {"query": ["b"], "prompts": ["b"], "labels": [[{"role": "user", "content": "a", "id": 1}]]},
            "labels[0][0].id",
        ),
    ],
)
def test_a_wrong_openrlhf_body_is_refused_and_says_where(body, where):
    if where is None:
        assert read(openrlhf, body).items
        return
    with pytest.raises(InvalidRequest) as caught:
        read(openrlhf, body)
    assert str(caught.value).startswith(f"{where}: ")


def test_llamafactory_messages_are_texts_and_its_placeholder_model_is_not_read():
    asked = read(llamafactory, {"model": "model", "messages": ["a", "b"]})
    assert (asked.items, asked.model) == (
        [TextItem(text="a", finished=False), TextItem(text="b", finished=False)],
        None,
    )
    assert asked.write(answered(0.5, 1.0)) == {
        "id": "scoreeval-abc",
        "object": "score.evaluation",
        "model": "rm",
        "scores": [0.5, 1.0],
    }
    with pytest.raises(InvalidRequest, match="max_length"):
        read(llamafactory, {"model": "model", "messages": ["a"], "max_length": 5})


def test_a_slime_rollout_is_a_text_or_a_chat_and_gets_a_bare_number_or_one_under_its_key():
    asked = read(slime, {"prompt": "a", "response": "b</s>", "label": {"any": 1}})
    assert asked.items == [PromptItem(prompt="a", completion="b</s>", finished=False)]
    assert asked.write(answered(0.5)) == 0.5
    asked = read(slime, {"prompt": CHAT, "response": "fine<|eot_id|>"}, reward_key="score")
    assert asked.items == [ChatItem(messages=MESSAGES, completions=["fine"], finished=True)]
    assert asked.write(answered(0.5)) == {"score": 0.5}
    with pytest.raises(InvalidRequest, match="prompt"):
        read(slime, {"prompt": [], "response": "b"})


@pytest.mark.parametrize(
    ("given_input", "items"),
    [
        ("a", [TextItem(text="a", finished=False)]),
        (["a", "b"], [TextItem(text="a", finished=False), TextItem(text="b", finished=False)]),
        ([1, 2], [TokenItem(token_ids=[1, 2])]),
        ([[1, 2], [3]], [TokenItem(token_ids=[1, 2]), TokenItem(token_ids=[3])]),
        ([], []),
    ],
)
def test_vllm_input_is_texts_or_token_ids(given_input, items):
    assert read(vllm, {"model": "rm", "input": given_input}).items == items


def test_vllm_gives_logits_without_activation_and_sigmoids_of_raw_scores_with_it():
    asked = read(vllm, {"model": "rm", "messages": CHAT, "use_activation": False})
    assert (asked.items, asked.raw) == ([ChatItem(messages=MESSAGES)], None)
    assert asked.write(answered(2.0)) == {
        "id": "classify-abc",
        "object": "list",
        "created": 1_700_000_000,
        "model": "rm",
        "data": [{"index": 0, "label": "LABEL_0", "probs": [2.0], "num_classes": 1}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0},
    }
    asked = read(vllm, {"input": "a"})
    probs = [entry["probs"][0] for entry in asked.write(answered(0.0, 1000.0, -1000.0))["data"]]
    assert (asked.raw, probs) == (True, [0.5, 1.0, 0.0])


@pytest.mark.parametrize("body", [{}, {"input": "a", "messages": CHAT}, {"input": "a", "truncate_prompt_tokens": 5}])
def test_a_vllm_body_that_asks_for_something_else_is_refused(body):
    with pytest.raises(InvalidRequest):
        read(vllm, body)


@pytest.mark.parametrize("dialect", [llamafactory, openrlhf, slime, vllm])
def test_a_body_that_is_no_json_is_refused(dialect):
    with pytest.raises(NotJson):
        dialect.ROUTES[0].read(b"{", {}, KnownTokens())
