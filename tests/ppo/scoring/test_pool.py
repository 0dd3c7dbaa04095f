import math
import threading
from concurrent.futures import Future

import pytest
import torch

from plaudit_client import Score
from plaudit_client.testing import FakeScorer
from plaudit_ppo.scoring.combined import CombinedScorer
from plaudit_ppo.scoring.pool import ScoredBatch, ScoringPool, call_scorer, gather


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def numbers(batch):
    return [None if math.isnan(score) else score for score in batch.scores.tolist()]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Score("too_long", None), "too_long"),
        (Score("failed", None, detail="out of memory"), "failed (out of memory)"),
        (Score("failed", 3.0), "failed"),
        (Score("ok", None), "the score is not finite"),
        (Score("ok", math.inf), "the score is not finite"),
        (Score("ok", math.nan), "the score is not finite"),
        (Score("ok", 1e300), "the score is not finite"),
    ],
)
def test_a_failure_is_never_a_number(result, reason):
    """Detail 10: a failed score is masked, whatever else the result says."""
    batch = call_scorer(lambda items: [Score("ok", 0.5), result], [{}, {}])
    assert numbers(batch) == [0.5, None]
    assert batch.scored.tolist() == [True, False]
    assert batch.failure == reason


def test_an_exception_of_the_scorer_is_the_failure_of_its_items_alone():
    """Detail 10."""

    def scorer(items):
        if items[0] == "bad":
            raise ConnectionError("no route")
        return [Score("ok", 1.0)] * len(items)

    pool = ScoringPool(scorer, 2)
    batch = gather([pool.submit(["good"]), pool.submit(["bad", "x"]), pool.submit(["good"])])
    assert numbers(batch) == [1.0, None, None, 1.0]
    assert batch.failure == "ConnectionError: no route"


def test_an_answer_of_the_wrong_length_is_no_answer():
    batch = call_scorer(lambda items: [Score("ok", 1.0)], [{}, {}])
    assert numbers(batch) == [None, None]
    assert batch.failure == "ValueError: 1 results for 2 rollouts"


def test_a_group_is_one_item_and_its_scores_come_back_to_its_rollouts():
    """Detail 35: `finished` is said of an item, so what has ended and what was cut are two."""
    sent = []

    def scorer(items):
        sent.extend(items)
        return [Score("ok", float(len(text))) for item in items for text in item["completions"]]

    chat = {"messages": [{"role": "user", "content": "p"}]}
    items = [
        {"prompt": "p", "completion": "a", "finished": True},
        {"prompt": "p", "completion": "bb", "finished": True},
        {**chat, "completions": ["ccc"], "finished": False},
        {**chat, "completions": ["dddd"], "finished": True},
        {"prompt": "p", "completion": "eeeee", "finished": False},
        {"prompt": "p", "completion": "ffffff", "finished": False},
    ]
    pool = ScoringPool(scorer, 1, group_size=2)
    assert numbers(pool.submit(items).result()) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert sent == [
        {"prompt": "p", "completions": ["a", "bb"], "finished": True},
        {**chat, "completions": ["dddd"], "finished": True},
        {**chat, "completions": ["ccc"], "finished": False},
        {"prompt": "p", "completions": ["eeeee", "ffffff"], "finished": False},
    ]
    assert numbers(call_scorer(FakeScorer(lambda item: float(len(item["completion"]))), items[:2], group_size=2)) == [
        1.0,
        2.0,
    ]


def test_a_scorer_with_the_parameter_gets_the_columns_of_each_items_prompt():
    """Of a group once; of one that is sent as two, with each."""
    seen = []

    def scorer(items, extra):
        seen.append(list(extra))
        return [Score("ok", 1.0) for item in items for _ in item.get("completions", [""])]

    items = [{"prompt": "p", "completion": "a", "finished": row != 1} for row in range(4)]
    columns = [{"label": row // 2} for row in range(4)]
    assert numbers(ScoringPool(scorer, 1, group_size=2).submit(items, columns).result()) == [1.0] * 4
    assert numbers(call_scorer(scorer, items, columns)) == [1.0] * 4
    assert seen == [[{"label": 0}, {"label": 0}, {"label": 1}], columns]
    assert numbers(call_scorer(lambda sent: [Score("ok", 2.0)] * len(sent), items, columns)) == [2.0] * 4
    both = CombinedScorer([scorer, lambda sent: [Score("ok", 2.0)] * len(sent)])
    assert numbers(call_scorer(both, items, columns)) == [3.0] * 4
    assert seen[2] == columns


def test_one_completion_of_a_group_without_a_score_is_masked_alone():
    """Details 10 and 35."""
    results = [Score("ok", 1.0), Score("failed", None, detail="no memory"), Score("ok", 3.0)]
    items = [{"prompt": "p", "completion": "a", "finished": True}] * 3
    batch = call_scorer(lambda sent: results, items, group_size=3)
    assert numbers(batch) == [1.0, None, 3.0]
    assert batch.failure == "failed (no memory)"
    assert call_scorer(lambda sent: results[:1], items, group_size=3).failure == "ValueError: 1 results for 3 rollouts"


def test_scores_come_back_in_the_order_in_which_they_were_sent_for():
    first_may_end = threading.Event()

    def scorer(items):
        if items == [1]:
            assert first_may_end.wait(10)
        else:
            first_may_end.set()
        return [Score("ok", float(item)) for item in items]

    pool = ScoringPool(scorer, 2)
    assert numbers(gather([pool.submit([1]), pool.submit([2])])) == [1.0, 2.0]


def test_no_more_calls_are_in_flight_than_allowed():
    lock, running, most = threading.Lock(), [], []

    def scorer(items):
        with lock:
            running.append(items)
            most.append(len(running))
        with lock:
            running.remove(items)
        return [Score("ok", 0.0) for _ in items]

    pool = ScoringPool(scorer, 1)
    gather([pool.submit([number]) for number in range(20)])
    assert max(most) == 1


def test_the_time_of_calls_is_added_up_and_the_wait_is_what_nobody_worked_in():
    clock = Clock()

    def scorer(items):
        clock.now += 2.5
        return [Score("ok", 0.0) for _ in items]

    assert call_scorer(scorer, [{}], clock=clock).call_s == 2.5

    class Late(Future):
        def result(self, timeout=None):
            clock.now += 0.75
            return ScoredBatch(torch.tensor([1.0]), call_s=3.0)

    batch = gather([Late(), Late()], clock=clock)
    assert (batch.call_s, batch.wait_s) == (6.0, 1.5)


def test_a_scorer_that_hangs_does_not_keep_the_process_alive():
    pool = ScoringPool(lambda items: threading.Event().wait(), 1)
    pool.submit([1])
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "plaudit-ppo-scoring")


def test_what_no_scorer_should_raise_reaches_who_awaits_the_scores():
    def scorer(items):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        gather([ScoringPool(scorer, 1).submit([1])])
