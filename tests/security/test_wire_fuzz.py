"""Bodies that nobody would send: a parsed request or a typed problem comes of each, and nothing else.

Two sources: JSON documents that are requests but for a few of their nodes, and valid bodies with changed bytes.
"""

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit_service.errors import EmptyBatch, InvalidRequest, NotJson, RequestError, TooLarge
from plaudit_service.http.dialects.dialect import Settled
from plaudit_service.http.dialects.endpoint import DIALECTS
from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.http.score_endpoint import check_sizes
from plaudit_service.http.wire import parse_request
from plaudit_service.items import ScoreRequest
from plaudit_service.settings import Settings

CALLS = [{"function": {"name": "f", "arguments": {"a": [1, None]}}}]
CHAT = [
    {"role": "user", "content": "hi", "name": None},
    {"role": "assistant", "content": "fine", "reasoning_content": "well", "tool_calls": CALLS},
]
SCORE = {
    "items": [
        {"text": "good"},
        {"prompt": "a", "completion": "b", "finished": False},
        {"prompt": "a", "completions": ["b", "ü"]},
        {"messages": CHAT},
        {"messages": CHAT[:1], "completions": ["b"]},
        {"token_ids": [1, 2, 3]},
    ],
    "model": "tiny",
    "truncation": "left",
    "fingerprint": "sha256:0",
    "engine": "e",
    "raw": True,
}
ASKED = {
    "openrlhf": [{"query": ["ab", "c"], "prompts": ["a", "c"], "labels": [CHAT, json.dumps(CHAT)]}],
    "llamafactory": [{"model": "m", "messages": ["a", "b"]}],
    "vllm": [{"model": "m", "input": [[1, 2], [3]]}, {"messages": CHAT, "use_activation": False}],
    "vllm_pooling": [
        {"model": "m", "input": [[1, 2], [3]], "task": "token_classify"},
        {"input": ["a"], "use_activation": False},
    ],
    "slime": [{"prompt": CHAT, "response": "b"}, {"prompt": "a", "response": "b", "label": 1}],
    "tei_predict": [{"inputs": [["a"], ["b", "c"]], "raw_scores": True}, {"inputs": ["a", "b"], "truncate": None}],
    "tei_rerank": [{"query": "a", "texts": ["b", "c"], "return_text": True, "truncation_direction": "left"}],
    "tei_classify": [{"inputs": "a", "parameters": {"function_to_apply": "none", "top_k": 1}}],
    "sglang_classify": [{"text": ["a", "b"]}, {"input_ids": [[1, 2], [3]], "rid": "r"}],
    "sglang_embeddings": [{"model": "m", "input": ["a", "b"]}],
    "nemo_gym_verify": [
        {
            "responses_create_params": {"input": [*CHAT[:1], {"type": "reasoning", "summary": [{"text": "well"}]}]},
            "response": {
                "output": [
                    {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"},
                    {"type": "function_call_output", "call_id": "1", "output": "2"},
                    {"role": "assistant", "content": [{"type": "output_text", "text": "fine"}]},
                ]
            },
            "unknown": [1, None],
        }
    ],
    "nemo_gym_seed_session": [{"verifier_metadata": {"a": 1}}, {"resources_session_id": "s", "task_data": {}}],
    "nemo_gym_close_session": [{"resources_session_id": "s", "episode_id": "e"}],
    "nemo_gym_aggregate_metrics": [{"verify_responses": [{"_ng_task_index": 0, "reward": 0.5, "extra": 1}]}],
}
ROUTES = {route.operation: route for routes in DIALECTS.values() for route in routes if route.method == "POST"}

KEYS = ["items", "text", "prompt", "completion", "completions", "messages", "role", "content", "token_ids", "finished"]
KEYS += ["name", "tool_calls", "type"]
NUMBERS = [math.nan, math.inf, -math.inf, 5e-324, -0.0, 1.0, 2**31, 2**63, -(2**64), 10**4000]
TEXTS = ["", "\ud800", "\x00", "\ufeff", "a" * 70_000, "NaN", "1"]
ODD = st.sampled_from([*NUMBERS, *TEXTS, True, None, [], {}, [[]], [None], {"": None}])
VALUES = st.recursive(
    ODD | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4),
    max_leaves=8,
)


def nodes(document, path=()):
    """The places of a document, its own first."""
    yield path
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from nodes(document[key], (*path, key))


@st.composite
def changed(draw, documents):
    """A document with one to three of its nodes replaced, removed or given a neighbor, as bytes."""
    document = json.loads(json.dumps(draw(st.sampled_from(documents))))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(nodes(document))))
        value = copy.deepcopy(draw(VALUES))
        if not path:
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.integers(0, 2)), parent:
            case 0, _:
                parent[path[-1]] = value
            case 1, _:
                del parent[path[-1]]
            case _, list():
                parent.insert(path[-1], value)
            case _, dict():
                parent[draw(st.sampled_from(KEYS) | st.text())] = value
    return json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw, documents):
    """A body with some of its bytes changed, removed, repeated or nested ever deeper."""
    body = bytearray(json.dumps(draw(st.sampled_from(documents))).encode())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 20)))
        match draw(st.integers(0, 4)):
            case 0:
                body[start:end] = draw(st.binary(max_size=8))
            case 1:
                body[start:start] = body[start:end] * draw(st.integers(1, 50))
            case 2:
                body[start:start] = draw(st.sampled_from([b"[", b'{"items":', b'{"a":'])) * 10_000
            case 3:
                body[start:start] = draw(st.sampled_from([b"\xed\xa0\x80", b"\xff\xfe", b"\\ud800", b"\x00", b"1e999"]))
            case _:
                del body[draw(st.sampled_from([start, end])) :]
    return bytes(body)


EXAMPLES = pytest.mark.parametrize("num_examples", [80, pytest.param(5000, marks=pytest.mark.slow)])


def run(check, bodies, num_examples):
    """Check many bodies: the same ones each time where they are few."""
    settings(max_examples=num_examples, derandomize=num_examples < 1000, deadline=None, database=None)(
        given(bodies)(check)
    )()


@EXAMPLES
@pytest.mark.parametrize("source", [changed, damaged])
def test_a_body_becomes_a_request_or_a_typed_problem(source, num_examples):
    def check(body):
        try:
            request = parse_request(body)
        except (NotJson, InvalidRequest, TooLarge) as error:
            assert_is_one_line(error)
            return
        assert isinstance(request, ScoreRequest)
        assert request.num_sequences == sum(item.num_sequences for item in request.items)
        request.model_dump_json().encode()  # no lone surrogate came through
        try:
            assert check_sizes(request, Settings()) >= 0
        except TooLarge as error:
            assert_is_one_line(error)

    run(check, source([SCORE]), num_examples)


@EXAMPLES
@pytest.mark.parametrize("source", [changed, damaged])
@pytest.mark.parametrize("operation", ROUTES)
def test_a_body_of_a_dialect_becomes_items_or_a_typed_problem(operation, source, num_examples):
    def check(body):
        try:
            asked = ROUTES[operation].read(body, {}, KnownTokens())
        except (NotJson, InvalidRequest, TooLarge, EmptyBatch) as error:
            assert_is_one_line(error)
            return
        if isinstance(asked, Settled):
            as_json(asked.document).encode()
            return
        request = ScoreRequest(items=asked.items)
        assert request.num_sequences == sum(item.num_sequences for item in asked.items)
        request.model_dump_json().encode()

    for asked in ASKED[operation]:
        assert ROUTES[operation].read(json.dumps(asked).encode(), {}, KnownTokens())
    run(check, source(ASKED[operation]), num_examples)


def as_json(document):
    return document.decode() if isinstance(document, bytes) else json.dumps(document, allow_nan=False)


def assert_is_one_line(error: RequestError):
    assert error.detail.isprintable()
    assert 0 < len(error.detail) <= 1000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"items":' * 100_000,
        b'{"items":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b'{"items":[{"token_ids":[' + b"9" * 1_000_000 + b"]}]}",
        b'{"items":[{"token_ids":[1e99999999]}]}',
        b'{"items":[{"text":' + b'"\\ud800"' + b"}]}",
        b'{"items":[],"' + b"k" * 1_000_000 + b'":1}',
        b'{"items":[],"line\\nbreak\\u001b[31m":1}',
        b"",
        b"\xff" * 100_000,
        b'\xef\xbb\xbf{"items":[]}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_hostile_body_is_refused_in_one_short_line(body):
    with pytest.raises((NotJson, InvalidRequest)) as caught:
        parse_request(body)
    assert_is_one_line(caught.value)


def test_of_duplicate_keys_the_last_one_counts():
    assert parse_request(b'{"items":[{"text":"a"}],"items":[]}').items == []
