"""SGLang's /classify and /v1/embeddings: bodies to items, scores to answers, and beside vLLM's /classify."""

import json

import httpx2
import pytest

from plaudit_service.errors import InvalidRequest, NotJson
from plaudit_service.http.dialects import sglang
from plaudit_service.http.dialects.dialect import Answered, Chosen
from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.items import TextItem, TokenItem

CLASSIFY, EMBEDDINGS = sglang.ROUTES


def read(route, body):
    return route.read(json.dumps(body).encode(), {}, KnownTokens())


def answered(*scores):
    return Answered(Chosen("rm"), scores, [3] * len(scores), "abc", 1_700_000_000)


def embedding(number, score):
    return {"embedding": [score], "meta_info": {"id": f"abc-{number}", "prompt_tokens": 3}}


def text(content):
    return TextItem(text=content, finished=False)


@pytest.mark.parametrize(
    ("body", "items", "answer"),
    [
        ({"text": "a"}, [text("a")], embedding(0, 0.5)),
        ({"text": ["a"]}, [text("a")], [embedding(0, 0.5)]),
        ({"text": ["a", "b"]}, [text("a"), text("b")], [embedding(0, 0.5), embedding(1, 0.5)]),
        ({"text": []}, [], []),
        ({"input_ids": [1, 2]}, [TokenItem(token_ids=[1, 2])], embedding(0, 0.5)),
        ({"input_ids": [[1, 2]]}, [TokenItem(token_ids=[1, 2])], [embedding(0, 0.5)]),
        ({"text": "a", "rid": "x", "image_data": None, "sampling_params": {}}, [text("a")], embedding(0, 0.5)),
    ],
)
def test_one_input_gets_an_object_and_a_list_gets_a_list(body, items, answer):
    asked = read(CLASSIFY, body)
    assert (asked.items, asked.raw) == (items, None)
    assert asked.write(answered(*[0.5] * len(items))) == answer


def test_a_body_may_name_the_model_as_sglangs_examples_do():
    assert read(CLASSIFY, {"model": "org/rm", "text": "a"}).model == "org/rm"
    assert read(EMBEDDINGS, {"model": "org/rm", "input": "a"}).model == "org/rm"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "body: give either text or input_ids"),
        ({"text": "a", "input_ids": [1]}, "body: give either text or input_ids"),
        ({"text": [["q", "a"]]}, "text"),
        ({"text": [1, 2]}, "text"),
        ({"text": "a", "image_data": "x"}, "image_data: an unknown field"),
        ({"text": "a", "dimensions": 2}, "dimensions: an unknown field"),
        ({"input_ids": "a"}, "input_ids"),
        ({"input_ids": [-1]}, "input_ids"),
        ({"input_ids": [1.5]}, "input_ids"),
        ({"input_ids": [True]}, "input_ids"),
        ({"input_ids": [[1], ["a"]]}, "input_ids"),
    ],
)
def test_a_wrong_body_is_refused_and_says_where(body, message):
    with pytest.raises(InvalidRequest) as caught:
        read(CLASSIFY, body)
    assert str(caught.value).startswith(message)


def test_embeddings_are_lists_whose_last_number_is_the_score():
    asked = read(EMBEDDINGS, {"model": "rm", "input": ["a", "b"], "encoding_format": "base64"})
    assert asked.items == [text("a"), text("b")]
    assert asked.write(answered(0.5, -2.0)) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5]},
            {"object": "embedding", "index": 1, "embedding": [-2.0]},
        ],
        "model": "rm",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    for wrong in ({"input": "a", "dimensions": 1}, {"input": [["a"]]}, {}, {"input": None}, {"input": {"a": 1}}):
        with pytest.raises(InvalidRequest):
            read(EMBEDDINGS, wrong)


@pytest.mark.parametrize("route", [*sglang.ROUTES, sglang.CLASSIFY_OR_VLLM])
@pytest.mark.parametrize("body", [b"{", b'{"text": "\\ud800"}', b"", b"\xff"])
def test_a_body_that_is_no_json_is_refused(route, body):
    with pytest.raises(NotJson):
        route.read(body, {}, KnownTokens())


def test_on_one_path_sglangs_and_vllms_clients_are_told_apart_by_what_they_send(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--dialects", "vllm,sglang"]) as service:

        def ask(body):
            return httpx2.post(f"{service.url}/classify", json=body)

        assert ask({"text": ["good", "bad"]}).json()[1]["embedding"] == [-1.0]
        assert ask({"input_ids": [1, 4]}).json()["embedding"] == [1.0]
        assert ask({"input": ["good", "bad"], "use_activation": False}).json()["data"][1]["probs"] == [-1.0]
        for wrong in ({"input": "good", "text": "good"}, {}, [], "text", {"text": None}):
            assert ask(wrong).status_code == 422
        assert ask({"text": "crash"}).json()["type"] == "urn:plaudit:item-failed"
        assert httpx2.get(f"{service.url}/openapi.json").json()["paths"]["/classify"]["post"]["operationId"] == (
            "vllm_or_sglang_classify"
        )
    with serve(tiny_bundle(), flags=["--dialects", "sglang"]) as service:
        assert ask({"text": "good"}).json()["embedding"] == [1.0]
        assert ask({"input": "good"}).status_code == 422
