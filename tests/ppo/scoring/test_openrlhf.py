import json

import pytest

from plaudit_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidArgument,
    RequestRejected,
    ServiceUnavailable,
)
from plaudit_client.retry import Timing
from plaudit_client.testing import FakeTransport, json_response
from plaudit_ppo import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.launch import connected_scorers
from plaudit_ppo.scoring.openrlhf import OpenRLHFScorer

URL = "http://a:5000/get_reward"
ITEMS = [
    {"prompt": "p ", "completion": "one", "finished": True},
    {"prompt": "q ", "completions": ["two", "three"], "finished": False},
]
COLUMNS = [{"answer": 4, "id": "x"}, {"id": "y"}]


class Clock:
    """Seconds that pass only while somebody sleeps."""

    now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def make():
    """A scorer whose service is a function, and what it has been asked."""

    def make(answer, **options):
        asked, clock = [], Clock()

        def reply(request):
            asked.append(request)
            return answer(json.loads(request.body))

        timing = Timing(clock=clock, sleep=clock.sleep, random=lambda: 1.0)
        scorer = OpenRLHFScorer(
            f"openrlhf+{URL}", timeout_s=10, connect=lambda: FakeTransport(reply), timing=timing, **options
        )
        return scorer, asked

    return make


@pytest.mark.parametrize(
    ("column", "labels"), [(None, [COLUMNS[0], COLUMNS[1], COLUMNS[1]]), ("answer", [4, None, None])]
)
def test_a_request_has_query_prompts_and_labels_for_each_completion(make, column, labels):
    """Detail 37: the form of OpenRLHF, with the columns of the prompts as labels."""
    scorer, asked = make(lambda body: json_response({"rewards": [0.5, -1, 2], "extra_logs": {}}), label_column=column)
    assert scorer(ITEMS, COLUMNS).floats == [0.5, -1.0, 2.0]
    (request,) = asked
    assert (request.method, request.url, request.headers) == ("POST", URL, {"Content-Type": "application/json"})
    expected = {"query": ["p one", "q two", "q three"], "prompts": ["p ", "q ", "q "], "labels": labels}
    assert json.loads(request.body) == expected
    assert scorer.retries == 0


def test_without_columns_a_label_is_empty(make):
    scorer, asked = make(lambda body: json_response({"rewards": [1.0, 1.0, 1.0]}))
    scorer(ITEMS)
    assert json.loads(asked[0].body)["labels"] == [{}, {}, {}]


def test_what_is_no_number_is_no_score(make):
    scorer, _ = make(lambda body: json_response({"rewards": [None, 1.0, True]}))
    assert [(score.status, score.score) for score in scorer(ITEMS)] == [
        ("failed", None),
        ("ok", 1.0),
        ("failed", None),
    ]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"scores": [1.0]}, "has no rewards"),
        ([], "has no rewards"),
        ({"rewards": [1.0]}, "does not have 3 rewards"),
        ({"rewards": "abc"}, "does not have 3 rewards"),
        ({"rewards": [1.0] * 3, "log": "x" * 100_000}, "is longer than 68608 bytes"),
    ],
)
def test_an_answer_without_a_reward_for_each_query_is_none(make, answer, says):
    scorer, _ = make(lambda body: json_response(answer))
    with pytest.raises(InvalidAnswer, match=says):
        scorer(ITEMS)


def test_failures_that_may_pass_are_repeated_and_counted_and_others_are_not(make):
    answers = [ConnectionFailed("refused", connected=False), json_response({}, 503), json_response({"rewards": [1.0]})]

    def answer(body):
        reply = answers.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    scorer, asked = make(answer)
    assert scorer(ITEMS[:1]).floats == [1.0]
    assert (len(asked), scorer.retries) == (3, 2)
    scorer, asked = make(lambda body: json_response({}, 400))
    with pytest.raises(RequestRejected, match="get_reward: answers 400"):
        scorer(ITEMS)
    assert len(asked) == 1
    scorer, asked = make(lambda body: json_response({}, 500))
    with pytest.raises((ServiceUnavailable, DeadlineExceeded)):
        scorer(ITEMS)
    assert len(asked) > 3


def test_a_chat_and_an_address_that_cannot_be_used_are_refused(make):
    scorer, asked = make(lambda body: json_response({"rewards": [1.0]}))
    with pytest.raises(
        InvalidArgument, match="the prompt is a chat, but a server with OpenRLHF's interface takes texts"
    ):
        scorer([{"messages": [], "completions": ["a"], "finished": True}])
    assert asked == []
    for address, says in (("openrlhf+ftp://a", "ftp"), ("openrlhf+http://a,http://b", "2 URLs, limit 1")):
        with pytest.raises(ConfigError, match=says):
            OpenRLHFScorer(address, timeout_s=1)


def test_the_address_says_the_form():
    config = PPOConfig(scorer_urls=[f"openrlhf+{URL}"], label_column="answer")
    with connected_scorers(config) as scorers:
        assert scorers.train.retries == 0
        assert scorers.evaluation is None
