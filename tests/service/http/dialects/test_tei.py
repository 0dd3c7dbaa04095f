"""TEI's routes: bodies to items, scores to answers, errors as its clients read them; and the Hub's own client."""

import asyncio
import json
import math

import httpx2
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from running_app import run_app, until

from plaudit_service.bundles.bundle import Normalization
from plaudit_service.errors import EmptyBatch, InvalidRequest, NotJson
from plaudit_service.http.dialects import tei
from plaudit_service.http.dialects.dialect import Answered, Chosen
from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.items import PromptItem, TextItem

PREDICT, RERANK, CLASSIFY = tei.ROUTES
SIGMOID_OF_2 = 1 / (1 + math.exp(-2.0))


def read(route, body):
    return route.read(json.dumps(body).encode(), {}, KnownTokens())


def answered(*scores, model=None, heads=()):
    return Answered(model or Chosen("rm"), scores, [3] * len(scores), "abc", 1_700_000_000, heads)


def text(content):
    return TextItem(text=content, finished=False)


def pair(first, second):
    return PromptItem(prompt=first, completion=second, finished=False)


def label(score, name="LABEL_0"):
    return {"score": score, "label": name}


@pytest.mark.parametrize(
    ("inputs", "items", "is_batch"),
    [
        ("a", [text("a")], False),
        (["a"], [text("a")], False),
        (["a", "b"], [pair("a", "b")], False),
        ([["a"]], [text("a")], True),
        ([["a"], ["b", "c"]], [text("a"), pair("b", "c")], True),
    ],
)
def test_inputs_are_one_text_one_pair_or_a_batch(inputs, items, is_batch):
    asked = read(PREDICT, {"inputs": inputs, "raw_scores": True})
    assert (asked.items, asked.raw) == (items, None)
    flat = [[label(2.0)] for _ in items]
    assert asked.write(answered(*[2.0] * len(items))) == (flat if is_batch else flat[0])
    asked = read(CLASSIFY, {"inputs": inputs, "parameters": {"function_to_apply": "none"}})
    assert asked.write(answered(*[2.0] * len(items))) == flat


@pytest.mark.parametrize(
    "inputs",
    [
        ["a", "b", "c"],
        ["a", ["b"]],
        [["a"], "b"],
        [[]],
        [["a", "b", "c"]],
        [["a"], [1]],
        [[["a"]]],
        1,
        None,
        {"a": "b"},
        [None],
        [1, 2],
        True,
    ],
)
def test_other_inputs_are_refused(inputs):
    for route in (PREDICT, CLASSIFY):
        with pytest.raises(InvalidRequest, match="inputs"):
            read(route, {"inputs": inputs})


def test_what_is_empty_is_an_error_of_its_own_and_what_is_no_json_another():
    for route, body in ((PREDICT, {"inputs": []}), (CLASSIFY, {"inputs": []}), (RERANK, {"query": "q", "texts": []})):
        with pytest.raises(EmptyBatch):
            read(route, body)
        for broken in (b"{", b'{"inputs": "\\udc00"}', b"\xff"):
            with pytest.raises(NotJson):
                route.read(broken, {}, KnownTokens())
    for body in ({}, {"inputs": "a", "raw_scores": "yes"}, {"inputs": "a", "truncation_direction": "up"}):
        with pytest.raises(InvalidRequest):
            read(PREDICT, body)


def test_one_label_is_squashed_by_a_sigmoid_unless_raw_scores_are_asked_for():
    asked = read(PREDICT, {"inputs": "a"})
    assert asked.raw is True
    assert asked.write(answered(2.0)) == [label(SIGMOID_OF_2)]
    assert asked.write(answered(-1000.0)) == [label(0.0)]
    assert read(CLASSIFY, {"inputs": "a"}).write(answered(2.0)) == [[label(SIGMOID_OF_2)]]
    assert read(CLASSIFY, {"inputs": "a", "raw_scores": True}).write(answered(2.0)) == [[label(2.0)]]


def test_several_labels_are_answered_by_name_the_greatest_first_and_squashed_by_a_softmax():
    model = Chosen("rm", ("helpful", "harmless"))
    several = answered(9.0, model=model, heads=[{"helpful": 1.0, "harmless": 1.0 + math.log(3.0)}])
    assert read(PREDICT, {"inputs": "a", "raw_scores": True}).write(several) == [
        label(1.0 + math.log(3.0), "harmless"),
        label(1.0, "helpful"),
    ]
    (harmless, helpful) = read(PREDICT, {"inputs": "a"}).write(several)
    assert (harmless["label"], helpful["label"]) == ("harmless", "helpful")
    assert (harmless["score"], helpful["score"]) == (pytest.approx(0.75), pytest.approx(0.25))
    asked = read(CLASSIFY, {"inputs": "a", "parameters": {"function_to_apply": "sigmoid", "top_k": 1}})
    ((only,),) = asked.write(several)
    assert only["score"] == pytest.approx(3 * math.e / (1 + 3 * math.e))
    huge = answered(9.0, model=model, heads=[{"helpful": -1e300, "harmless": 1e300}])
    assert read(PREDICT, {"inputs": "a"}).write(huge) == [label(1.0, "harmless"), label(0.0, "helpful")]


def test_a_combination_is_one_label_of_its_own_name():
    safe = answered(2.0, model=Chosen("safe", ("safe",)), heads=[{"a": 1.0, "b": 3.0}])
    assert read(PREDICT, {"inputs": "a", "raw_scores": True}).write(safe) == [label(2.0, "safe")]


def test_the_softmax_of_one_label_is_refused_because_it_is_always_1():
    asked = read(CLASSIFY, {"inputs": "a", "parameters": {"function_to_apply": "softmax"}})
    with pytest.raises(InvalidRequest, match="always 1"):
        asked.check(Chosen("rm"))
    asked.check(Chosen("rm", ("a", "b")))
    for parameters in ({"function_to_apply": "relu"}, {"top_k": 0}):
        with pytest.raises(InvalidRequest):
            read(CLASSIFY, {"inputs": "a", "parameters": parameters})


@pytest.mark.parametrize(
    ("body", "setting", "truncation"),
    [
        ({}, "error", "error"),
        ({}, "left", "left"),
        ({"truncate": None, "truncation_direction": "right"}, "left", "right"),
        ({"truncate": False}, "left", "error"),
        ({"truncate": True}, "error", "right"),
        ({"truncate": True}, "left", "left"),
        ({"truncate": True, "truncation_direction": "Left"}, "error", "left"),
        ({"truncation_direction": "left"}, "error", "error"),
    ],
)
def test_truncation_is_the_requests_choice_or_else_the_operators(body, setting, truncation):
    for route, needed in ((PREDICT, {"inputs": "a"}), (RERANK, {"query": "q", "texts": ["a"]})):
        assert read(route, {**needed, **body}).truncation(setting) == truncation


def test_texts_are_ranked_by_the_scores_of_their_pairs():
    asked = read(RERANK, {"query": "q", "texts": ["a", "b", "c"], "raw_scores": True, "return_text": True})
    assert asked.items == [PromptItem(prompt="q", completions=["a", "b", "c"], finished=False)]
    assert asked.write(answered(1.0, 3.0, -2.0)) == [
        {"index": 1, "text": "b", "score": 3.0},
        {"index": 0, "text": "a", "score": 1.0},
        {"index": 2, "text": "c", "score": -2.0},
    ]
    asked = read(RERANK, {"query": "q", "texts": ["a", "b"]})
    assert (asked.raw, asked.write(answered(0.0, 2.0))) == (
        True,
        [{"index": 1, "score": SIGMOID_OF_2}, {"index": 0, "score": 0.5}],
    )


def test_predict_answers_texts_and_refuses_what_the_model_does_not_score(serve, tiny_bundle):
    bundle = tiny_bundle(max_tokens=24, normalization=Normalization(mean=1.0, std=2.0))
    with serve(bundle, flags=["--dialects", "tei"]) as service:

        def ask(path="/predict", **body):
            answer = httpx2.post(service.url + path, json=body)
            return answer.status_code, answer.json()

        assert ask(inputs=[["good good"], ["bad"]], raw_scores=True) == (200, [[label(0.5)], [label(-1.0)]])
        assert ask(inputs="good good") == (200, [label(SIGMOID_OF_2)])
        for body, status, kind, message in (
            ({"inputs": ["good", "bad"]}, 422, "Validation", 'for two texts send [["a"], ["b"]]'),
            ({"inputs": "good " * 30}, 422, "Validation", "31 tokens, limit 24"),
            ({"inputs": "infinite"}, 424, "Backend", "non_finite"),
            ({"inputs": [["good"], ["crash"]]}, 424, "Backend", "failed"),
            ({"inputs": "[BOS]"}, 422, "Validation", "empty"),
            ({"inputs": "<|im_start|>good"}, 422, "Validation", "special token <|im_start|>"),
            ({"inputs": []}, 400, "Empty", "empty"),
            ({"inputs": {}}, 422, "Validation", "inputs"),
            ({"inputs": [["good"]] * 1025}, 413, "Validation", "limit 1024"),
        ):
            answered_status, error = ask(**body)
            assert (answered_status, error["error_type"]) == (status, kind), body
            assert message in error["error"]
            assert error.keys() == {"error", "error_type"}
        assert ask(inputs="bad " * 4 + "good " * 23, truncate=True, truncation_direction="left", raw_scores=True) == (
            200,
            [label((23 - 1.0) / 2.0)],
        )
        status, error = ask("/rerank", query="good", texts=["bad"])
        assert (status, error["error_type"]) == (424, "Backend")
        assert error["error"].startswith("model is not a re-ranker model")
        missing = httpx2.post(f"{service.url}/predict?model=other", json={"inputs": "good"})
        assert (missing.status_code, missing.json()["error_type"]) == (404, "Validation")
        compressed = httpx2.post(f"{service.url}/predict", content=b"x", headers={"Content-Encoding": "gzip"})
        assert (compressed.status_code, compressed.headers["accept-encoding"]) == (415, "identity")
        assert httpx2.get(f"{service.url}/predict").status_code == 405
        info = httpx2.get(f"{service.url}/info").json()
        assert info["model_type"] == {"classifier": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
        assert (info["max_input_length"], info["max_client_batch_size"], info["auto_truncate"]) == (24, 1024, False)
        assert info["models"][0]["name"] == "tiny"


def test_a_model_of_pairs_scores_pairs_and_ranks_texts(serve, tiny_bundle):
    with serve(tiny_bundle(pair=True), flags=["--dialects", "tei"]) as service:

        def ask(path, **body):
            answer = httpx2.post(service.url + path, json=body)
            return answer.status_code, answer.json()

        assert ask("/predict", inputs=["good", "fine"], raw_scores=True) == (200, [label(1.5)])
        assert ask("/predict", inputs=[["good", "fine"], ["bad", "bad"]], raw_scores=True)[1][1] == [label(-2.0)]
        assert ask("/rerank", query="good", texts=["bad", "fine"], raw_scores=True) == (
            200,
            [{"index": 1, "score": 1.5}, {"index": 0, "score": 0.0}],
        )
        status, error = ask("/predict", inputs="good")
        assert (status, "was trained on pairs" in error["error"]) == (422, True)
        assert ask("/rerank", query="good", texts=["bad", "infinite"])[0] == 424
        assert "reranker" in httpx2.get(f"{service.url}/info").json()["model_type"]


def test_without_the_dialect_info_is_as_before(serve, tiny_bundle):
    with serve(tiny_bundle(), tiny_bundle(name="two"), flags=["--dialects", "tei"]) as service:
        several = httpx2.get(f"{service.url}/info").json()
        assert "model_id" not in several
        assert several["max_concurrent_requests"] == 1024
    with serve(tiny_bundle()) as service:
        assert several.keys() - httpx2.get(f"{service.url}/info").json().keys() == {
            "max_concurrent_requests",
            "max_client_batch_size",
            "max_batch_tokens",
            "max_batch_requests",
            "auto_truncate",
            "tokenization_workers",
            "sha",
            "docker_label",
        }


def test_where_the_queue_is_full_a_request_waits_and_where_too_many_wait_it_is_429(tiny_bundle):
    async def scenario(app):
        def ask(content, **headers):
            body = {"inputs": content, "raw_scores": True}
            return asyncio.create_task(app.client.post("/predict", json=body, headers=headers))

        tasks = await app.fill_queue("tiny")
        tasks.append(ask("good"))
        await until(lambda: app.value("queued_sequences") == 1)
        waits = [ask("good good"), ask("fine fine")]
        await until(lambda: app.value("waiting_requests") == 2)
        shed = await ask("awful")
        assert (shed.status_code, shed.json()["error_type"], shed.headers["retry-after"]) == (429, "Overloaded", "1")
        app.open_gates()
        assert [(await task).json() for task in waits] == [[label(2.0)], [label(1.0)]]
        late = await app.client.post("/predict", json={"inputs": "bad"}, headers={"X-Request-Timeout-S": "0"})
        assert (late.status_code, late.json()["error_type"]) == (503, "Unhealthy")
        for task in tasks:
            assert (await task).status_code == 200

    run_app(scenario, tiny_bundle(), dialects="tei", max_queued_sequences=1, max_waiting_requests=2, max_batch_tokens=1)


def test_the_hubs_own_client_gets_the_scores_of_a_running_service(serve, tiny_bundle, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    models = [tiny_bundle(normalization=Normalization(mean=1.0, std=2.0)), tiny_bundle(name="two", heads={"a": 2.0})]
    with serve(*models, flags=["--dialects", "tei"], env={"PLAUDIT_API_KEYS": "secret"}) as service:
        client = InferenceClient(base_url=f"{service.url}/?model=tiny", token="secret")
        (raw,) = client.text_classification("good good", function_to_apply="none")
        assert (raw.label, raw.score) == ("LABEL_0", 0.5)
        (squashed,) = client.text_classification("good good", top_k=5)
        assert squashed.score == SIGMOID_OF_2
        (other,) = client.text_classification("good", model=f"{service.url}/?model=two", function_to_apply="none")
        assert (other.label, other.score) == ("a", 2.0)
        for wrong, status in (("infinite", 424), ("<|im_start|>", 422), ("", 422)):
            with pytest.raises(HfHubHTTPError) as caught:
                client.text_classification(wrong, function_to_apply="none")
            assert caught.value.response.status_code == status
        with pytest.raises(HfHubHTTPError, match="softmax is always 1"):
            client.text_classification("good", function_to_apply="softmax")
        with pytest.raises(HfHubHTTPError, match="401"):
            InferenceClient(base_url=service.url, token="other").text_classification("good")
        with pytest.raises(HfHubHTTPError, match="name one in the URL"):
            InferenceClient(base_url=service.url, token="secret").text_classification("good")
        assert {line["route"] for line in service.events("request")} == {"/"}
