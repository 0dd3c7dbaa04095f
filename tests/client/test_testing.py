import json
import math

import pytest

from plaudit_client import RewardClient
from plaudit_client.errors import (
    FingerprintChanged,
    FingerprintMismatch,
    InvalidArgument,
    RequestTooLarge,
    UnknownModel,
)
from plaudit_client.testing import FakeScorer, FakeService
from plaudit_client.transport import HttpRequest


def score_with_service(function, items):
    with RewardClient("http://fake", transport=FakeService(function)) as client:
        return client.score(items)


def score_with_scorer(function, items):
    return FakeScorer(function)(items)


both = pytest.mark.parametrize("score", [score_with_service, score_with_scorer])


@both
def test_a_function_gives_the_score_or_the_failure_of_each_sequence(score):
    scores = score(lambda item: "expired" if item["text"] == "b" else 2.0, ["a", "b"])
    assert [(result.status, result.score) for result in scores] == [("ok", 2.0), ("expired", None)]


@both
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_a_failure(score, number):
    assert [result.status for result in score(lambda item: number, ["a"])] == ["non_finite"]


@both
def test_a_group_reaches_the_function_one_completion_at_a_time(score):
    seen = []
    question = {"role": "user", "content": "q"}
    items = [
        {"prompt": "p", "completions": ["a", "b"], "finished": False},
        {"messages": [question], "completions": ["c"]},
        {"token_ids": [1, 2]},
    ]
    scores = score(lambda item: seen.append(item) or 1.0, items)
    assert seen == [
        {"prompt": "p", "completion": "a", "finished": False},
        {"prompt": "p", "completion": "b", "finished": False},
        {"messages": [question, {"role": "assistant", "content": "c"}]},
        {"token_ids": [1, 2]},
    ]
    assert [result.num_tokens for result in scores] == [2, 2, 2, 2]


def test_the_fake_scorer_remembers_what_it_was_called_with():
    scorer = FakeScorer(lambda item: 1.0)
    scorer(["a"], model="fake", truncation="left", raw=True, timeout_s=1.0)
    assert scorer.calls == [[{"text": "a"}]]


def test_the_fake_scorer_checks_items_and_fingerprint_as_the_client_does():
    scorer = FakeScorer(lambda item: 1.0)
    with pytest.raises(InvalidArgument):
        scorer([{"txt": "a"}])
    with pytest.raises(FingerprintChanged):
        scorer(["a"], fingerprint="sha256:other")


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"fingerprint": "sha256:other"}, FingerprintMismatch), ({"model": "other"}, UnknownModel)],
)
def test_the_fake_service_refuses_what_it_has_not_loaded(options, kind):
    with RewardClient("http://fake", transport=FakeService(lambda item: 1.0)) as client, pytest.raises(kind):
        client.score(["a"], **options)


def test_the_fake_service_refuses_more_sequences_than_it_says():
    service = FakeService(lambda item: 1.0, max_sequences_per_request=2)
    group = {"prompt": "p", "completions": ["a", "b", "c"]}
    with RewardClient("http://fake", transport=service) as client, pytest.raises(RequestTooLarge, match="limit 2"):
        client.score([group])


def test_the_fake_service_is_ready_and_knows_no_other_route():
    service = FakeService(lambda item: 1.0)
    assert service.answer(HttpRequest("GET", "http://fake/readyz", {})).status == 200
    assert json.loads(service.answer(HttpRequest("GET", "http://fake/nowhere", {})).body)["status"] == 404
