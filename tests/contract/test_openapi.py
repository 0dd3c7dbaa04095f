"""The service and the client never import each other; they meet in this document.

After a change that is meant: `PLAUDIT_UPDATE_CONTRACT=1 .venv/bin/pytest tests/contract`.
"""

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

import pytest

from plaudit_client.errors import InvalidArgument
from plaudit_client.items import FORMS, MESSAGE_FIELDS, WIRE_FIELDS, normalize_items, num_chars
from plaudit_client.protocol import AlongWhat, Limits, Options, Reply, parse_answer, split_items
from plaudit_client.scores import Along, Status
from plaudit_service import items
from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.errors import InvalidRequest
from plaudit_service.http.app import build_routes
from plaudit_service.http.wire import parse_request, to_wire
from plaudit_service.results import Along as ServiceAlong
from plaudit_service.results import Result
from plaudit_service.results import Status as ServiceStatus
from plaudit_service.serving.service import Service
from plaudit_service.settings import Settings

SNAPSHOT = Path(__file__).parent / "openapi.json"


def test_the_service_emits_the_snapshot(tiny_bundle):
    document = build_routes(Service([load_bundle(tiny_bundle())], Settings())).openapi()
    if os.environ.get("PLAUDIT_UPDATE_CONTRACT"):
        SNAPSHOT.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    assert json.loads(SNAPSHOT.read_text()) == document


SCHEMAS = json.loads(SNAPSHOT.read_text())["components"]["schemas"]
ITEMS = ("TextItem", "PromptItem", "ChatItem", "TokenItem")
VALUES = {
    "text": "a",
    "prompt": "a",
    "completion": "b",
    "completions": ["b", "c"],
    "steps": ["b", "c"],
    "messages": [{"role": "user", "content": "a"}],
    "token_ids": [1, 2],
}


def test_the_client_sends_no_field_that_the_contract_lacks_and_lacks_none():
    assert frozenset().union(*(SCHEMAS[name]["properties"] for name in ITEMS)) == WIRE_FIELDS


def test_client_and_service_know_the_same_fields_of_a_message():
    assert set(SCHEMAS["Message"]["properties"]) == set(items.MESSAGE_FIELDS) == MESSAGE_FIELDS
    assert SCHEMAS["Message"]["additionalProperties"] == {"type": "null"}


MESSAGES = [
    {"role": "user", "content": "a", "name": None, "id": None},
    {"role": "user", "content": [{"type": "text", "text": "a", "image": None}]},
    {"role": "assistant", "tool_calls": [{"a": [1, None, {"b": 2.5}]}]},
    {"role": "assistant", "content": "a", "reasoning_content": "b", "thinking": "c", "name": "d", "tool_call_id": "e"},
    {"role": "assistant", "content": "a", "tool_calls": []},
]
WRONG_MESSAGES = [
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "user"},
    {"content": "a"},
    {"role": "user", "content": "a", "id": 7},
    {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
    {"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]},
    {"role": "user", "content": "a", "name": 3},
    {"role": "user", "content": "a", "tool_calls": ["f"]},
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_the_client_sends_is_one_that_the_service_reads_alike(message):
    (sent,) = normalize_items([{"messages": [message]}])
    (asked,) = parse_request(json.dumps({"items": [sent]})).items
    (alike,) = parse_request(json.dumps({"items": [{"messages": [message]}]})).items
    assert asked.messages[0].to_template() == alike.messages[0].to_template()
    assert sum(map(items.num_chars, asked.messages[0].to_template().values())) <= num_chars(sent)


@pytest.mark.parametrize("message", WRONG_MESSAGES)
def test_a_message_that_the_service_refuses_is_one_that_the_client_does_not_send(message):
    with pytest.raises(InvalidRequest):
        parse_request(json.dumps({"items": [{"messages": [message]}]}))
    with pytest.raises(InvalidArgument):
        normalize_items([{"messages": [message]}])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "+".join(sorted(form)))
def test_the_service_takes_every_item_form_that_the_client_sends(form):
    items = normalize_items([{**{key: VALUES[key] for key in form}, "finished": False}])
    options = Options("m", "left", raw=True, fingerprint="f", engine="e", along="steps", explain=True)
    (request,) = split_items(items, options, Limits())
    parsed = parse_request(request.body)
    assert parsed.num_sequences == request.num_sequences
    assert parsed.items[0].model_dump(exclude_unset=True) == items[0]
    assert parsed.model_dump(exclude={"items"}) == options.to_wire()


def test_client_and_service_know_the_same_values_along_a_text():
    assert set(get_args(AlongWhat)) == set(get_args(items.Along))
    assert set(SCHEMAS["ScoresAlong"]["properties"]) == {field.name for field in fields(Along)}
    assert {field.name for field in fields(ServiceAlong)} == {field.name for field in fields(Along)}


def test_client_and_service_know_the_same_statuses():
    assert set(get_args(Status)) == set(SCHEMAS["Status"]["enum"]) == {str(status) for status in ServiceStatus}


@pytest.mark.parametrize("asked", [False, True])
def test_the_client_reads_the_results_that_the_service_writes(asked):
    results = [
        Result(ServiceStatus.OK, 1.5, 3, truncated=True, heads={"a": 1.0, "b": 2.0}),
        Result(ServiceStatus.TOO_LONG, None, 9000, detail="items[1]: too long", index=1),
    ]
    options = Options()
    if asked:
        options = Options(along="steps", explain=True)
        along = ServiceAlong([0, 4], [0.25, 1.5], trained=True, ends=[2, 9], messages=[None, 1], steps=[0, 1])
        results[0] = replace(results[0], along=along, text="a text ")
    answer = {"model": "m", "fingerprint": "f", "engine": "e", "results": [to_wire(result) for result in results]}
    reply = Reply("POST /score", 200, {}, json.dumps(answer).encode(), 10_000)
    for score, result in zip(parse_answer(reply, 2, options), results, strict=True):
        assert score.text == result.text
        assert (score.along is None) == (result.along is None)
        if score.along is not None:
            assert {name: column for name, column in asdict(score.along).items() if name != "trained"} == {
                name: tuple(column) for name, column in vars(result.along).items() if name != "trained"
            }
            assert score.along.trained
        assert (score.status, score.score, score.num_tokens) == (str(result.status), result.score, result.num_tokens)
        assert (score.truncated, score.detail, score.heads) == (result.truncated, result.detail, result.heads)
