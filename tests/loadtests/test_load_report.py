import asyncio
import math
import random

import load_report
import pytest
from http_load import Answer
from load_policy import CAP_S, backoff_s
from load_report import Attempted, Step


@pytest.mark.parametrize(
    ("attempt", "retry_after", "jitter", "pause_s"),
    [
        (0, None, 0.5, 0.125),
        (2, None, 0.5, 0.5),
        (50, None, 0.999, 0.999 * CAP_S),
        (0, "2", 0.0, 2.0),
        (0, "2", 0.5, 2.125),
        (0, "0", 0.5, 0.125),
        (0, "61", 0.5, 0.125),
        (0, "Wed, 21 Oct 2015 07:28:00 GMT", 0.5, 0.125),
    ],
)
def test_backoff_is_exponential_jittered_capped_and_obeys_retry_after(attempt, retry_after, jitter, pause_s):
    assert backoff_s(attempt, retry_after, jitter) == pytest.approx(pause_s)


def test_goodput_counts_what_was_scored_while_the_load_lasted():
    attempted = [
        Attempted(due_s=0.0, finished_s=0.1, scored=True, num_shed=0),
        Attempted(due_s=1.0, finished_s=1.3, scored=True, num_shed=2),
        Attempted(due_s=1.9, finished_s=2.4, scored=True, num_shed=0),  # in time, but after the load
        Attempted(due_s=1.0, finished_s=1.9, scored=False, num_shed=4),
    ]
    step = load_report.summarize(attempted, seconds=2.0)
    assert step.offered == 2.0
    assert step.goodput == 1.0
    assert (step.p50_s, step.p99_s) == (pytest.approx(0.3), pytest.approx(0.5))
    assert step.shed_per_request == 1.5
    assert step.share_in_time == 0.75


def test_a_step_without_any_score_has_no_latency():
    step = load_report.summarize([Attempted(0.0, 1.0, scored=False, num_shed=1)], seconds=1.0)
    assert step.goodput == 0
    assert math.isnan(step.p50_s)


class FakeClient:
    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.sent = []

    async def send(self, request, *, timeout_s):
        self.sent.append((request, timeout_s))
        body = b'{"results": [{"status": "ok"}]}'
        return Answer(self.statuses.pop(0), b"HTTP/1.1 x", body, 0.0, asyncio.get_running_loop().time())


def persist(client, deadline_s=60.0):
    class NoJitter(random.Random):
        def random(self):
            return 0.0

    async def run():
        begin = asyncio.get_running_loop().time()
        return await load_report.persist(client, "http://x:1", "text", begin, 0.0, deadline_s, NoJitter())

    return asyncio.run(run())


def test_a_request_is_tried_again_until_it_is_scored():
    client = FakeClient(429, 0, 503, 200)
    attempted = persist(client)
    assert attempted.scored
    assert attempted.num_shed == 2
    timeouts = [timeout_s for _, timeout_s in client.sent]
    assert timeouts == sorted(timeouts, reverse=True)
    assert f"X-Request-Timeout-S: {timeouts[0]:.3f}".encode() in client.sent[0][0]


def test_what_would_stay_the_same_is_not_tried_again():
    client = FakeClient(504)
    assert not persist(client).scored
    assert len(client.sent) == 1


def test_nothing_is_sent_after_the_deadline():
    client = FakeClient()
    assert not persist(client, deadline_s=-1.0).scored
    assert client.sent == []


def test_the_page_has_a_row_for_each_step_and_loads_nothing():
    steps = [Step(5.0, 5.0, 0.02, 0.05, 0.0, 1.0), Step(30.0, 9.5, 1.0, 4.9, 2.5, 0.4)]
    page = load_report.page(steps, 10.0, "capacity <10>", "<b>goodput</b> & fine")
    assert page.count("<tr>") == 3
    assert "capacity &lt;10&gt;" in page
    assert "&lt;b&gt;goodput&lt;/b&gt; &amp; fine." in page
    assert page.count("<svg") == 1
    assert '<td class="number">40.0%</td>' in page
    assert 'src="' not in page
    assert "<script" not in page


def test_loads_are_sorted_and_have_to_be_positive(capsys):
    assert load_report.parse(["--loads", "3,0.5"]).loads == [0.5, 3.0]
    with pytest.raises(SystemExit):
        load_report.parse(["--loads", "0,1"])
    assert "above 0" in capsys.readouterr().err
