"""The reward function, called as TRL 1.16 calls it."""

import asyncio
import inspect
import json

import pytest

from plaudit_client import (
    InvalidArgument,
    PlauditError,
    RewardClient,
    ServiceUnavailable,
    Unauthorized,
)
from plaudit_client.adapters.trl import reward_function, to_items
from plaudit_client.testing import FakeService, FakeTransport, json_response

USER = {"role": "user", "content": "Hi"}


def assistant(text):
    return [{"role": "assistant", "content": text}]


def call(transport, prompts, completions, options=None, client_options=None, **columns):
    with RewardClient("http://fake", transport=transport, **(client_options or {})) as client:
        reward = reward_function(client=client, **(options or {}))
        return asyncio.run(reward(prompts=prompts, completions=completions, **columns))


def by_length(item):
    text = item["messages"][-1]["content"] if "messages" in item else item["completion"]
    return "too_long" if text == "long" else float(len(text))


def test_it_is_a_plain_async_function_with_a_name():
    with RewardClient("http://fake", transport=FakeService(by_length)) as client:
        reward = reward_function(client=client, name="helpful")
        assert inspect.iscoroutinefunction(reward)
        assert reward.__name__ == "helpful"


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [
        (["Hi", "Hi", "Ho"], ["a", "bb", "ccc"]),
        ([[USER], [USER], [USER]], [assistant("a"), assistant("bb"), assistant("ccc")]),
    ],
)
def test_texts_and_chats_get_one_score_for_each_completion_in_order(prompts, completions):
    columns = {"completion_ids": [[1]] * 3, "trainer_state": None, "anything": [1, 2, 3]}
    assert call(FakeService(by_length), prompts, completions, **columns) == [1.0, 2.0, 3.0]


def test_neighbours_with_one_prompt_are_one_group_and_a_cut_completion_is_not_finished():
    items = to_items(["Hi", "Hi", "Hi", "Ho"], ["a", "b", "c", "d"], [True, True, False, False])
    assert items == [
        {"prompt": "Hi", "completions": ["a", "b"], "finished": True},
        {"prompt": "Hi", "completions": ["c"], "finished": False},
        {"prompt": "Ho", "completions": ["d"], "finished": False},
    ]


def test_fields_that_a_table_left_empty_are_no_matter_and_several_messages_make_one_chat():
    several = [*assistant("a"), {"role": "tool", "content": "b", "name": None}, *assistant("c")]
    items = to_items([[USER]] * 2, [several, [{**assistant("d")[0], "tool_calls": None}]], [True, True])
    assert items == [
        {"messages": [USER, *several], "finished": True},
        {"messages": [USER], "completions": ["d"], "finished": True},
    ]


def test_finished_is_read_from_the_completions_last_token():
    service = FakeService(by_length)
    call(service, ["Hi"] * 3, ["a", "b", "c"], {"eos_token_id": 9}, completion_ids=[[1, 9], [1], []])
    sent = [request.body for request in service.requests if request.path == "/score"]
    assert b'"completions":["a"],"finished":true' in sent[0].replace(b", ", b",").replace(b": ", b":")
    assert b'"completions":["b","c"],"finished":false' in sent[0].replace(b", ", b",").replace(b": ", b":")


@pytest.mark.parametrize("eos_token_id", [[9, 7], (7, 9)])
def test_a_turn_that_ended_with_any_of_several_eos_is_finished(eos_token_id):
    """A policy's generation config lists several, as Llama 3's and Gemma's do."""
    service = FakeService(by_length)
    call(service, ["Hi"] * 3, ["a", "b", "c"], {"eos_token_id": eos_token_id}, completion_ids=[[1, 9], [1, 7], [1]])
    (sent,) = [json.loads(request.body)["items"] for request in service.requests if request.path == "/score"]
    assert [(item["completions"], item["finished"]) for item in sent] == [(["a", "b"], True), (["c"], False)]


@pytest.mark.parametrize("eos_token_id", ["</s>", [1, "2"], True, {"a": 1}])
def test_what_is_no_eos_id_is_refused_and_marks_nothing_as_cut(eos_token_id):
    with pytest.raises(InvalidArgument, match=r"eos_token_id: got .*; give an int, a list of int, or None"):
        reward_function("http://fake", eos_token_id=eos_token_id)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}


def test_tool_calls_and_reasoning_go_to_the_reward_models_template():
    """TRL's tools: an assistant's message that calls, the tool's answer, the assistant's last word; and thoughts."""
    user = {**USER, "name": None}
    tools = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "content": "3", "tool_calls": None},
        *assistant("three"),
    ]
    thought = [{"role": "assistant", "content": "four", "reasoning_content": "hm", "tool_calls": None}]
    service = FakeService(by_length)
    assert call(service, [[user]] * 2, [tools, thought]) == [5.0, 4.0]
    (sent,) = [json.loads(request.body)["items"] for request in service.requests if request.path == "/score"]
    # Tables put the null there.
    without_null = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    calls = {"role": "assistant", "tool_calls": [without_null]}
    answer = {"role": "tool", "name": "add", "content": "3"}
    assert sent == [
        {"messages": [USER, calls, answer, *assistant("three")], "finished": True},
        {"messages": [USER, {"role": "assistant", "content": "four", "reasoning_content": "hm"}], "finished": True},
    ]


def test_a_field_that_no_template_reads_is_refused_by_its_name():
    with pytest.raises(InvalidArgument, match=r"items\[0\]\.messages\[1\]\.audio: "):
        call(FakeService(by_length), [[USER]], [[{"role": "assistant", "content": "a", "audio": {"id": "1"}}]])


def test_a_completion_without_a_score_is_none_never_a_number_and_its_share_is_logged():
    logged = {}
    scores = call(FakeService(by_length), ["Hi"] * 2, ["a", "long"], log_metric=logged.__setitem__)
    assert scores == [1.0, None]
    assert logged == {"scoring/failed_fraction": 0.5}


def test_a_completion_without_a_score_is_raised_on_request():
    with pytest.raises(PlauditError, match="1 of 2 completions have no score; the first: too_long"):
        call(FakeService(by_length), ["Hi"] * 2, ["a", "long"], {"on_failure": "raise"})


BUSY = FakeTransport(lambda request: json_response({"detail": "busy"}, 503))


def test_a_call_that_no_retry_helped_gives_none_for_all_or_is_raised():
    assert call(BUSY, ["Hi"] * 2, ["a", "b"], client_options={"max_retries": 0}) == [None, None]
    with pytest.raises(ServiceUnavailable):
        call(BUSY, ["Hi"], ["a"], {"on_failure": "raise"}, client_options={"max_retries": 0})


def test_what_no_repetition_can_mend_is_always_raised():
    refused = FakeTransport(lambda request: json_response({"detail": "no key"}, 401))
    with pytest.raises(Unauthorized):
        call(refused, ["Hi"], ["a"])
    with pytest.raises(InvalidArgument, match="on_failure"):
        reward_function("http://fake", on_failure="zero")
    with pytest.raises(InvalidArgument, match=r"items\[0\].messages"):
        call(FakeService(by_length), [[{"role": "user", "content": [{"type": "image"}]}]], [assistant("a")])


def test_another_reward_model_behind_the_url_is_raised():
    services = [FakeService(by_length), FakeService(by_length, fingerprint="sha256:other")]

    def answer(request):
        return services[0].answer(request)

    with RewardClient("http://fake", transport=FakeTransport(answer)) as client:
        reward = reward_function(client=client)
        assert asyncio.run(reward(prompts=["Hi"], completions=["a"])) == [1.0]
        services.pop(0)
        with pytest.raises(PlauditError, match="sha256:"):
            asyncio.run(reward(prompts=["Hi"], completions=["a"]))
