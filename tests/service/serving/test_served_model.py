"""Whole requests to combinations: what one part refuses, misses or cannot score, the combination does."""

import asyncio

import numpy as np
import pytest
from running_app import run_app, until

from plaudit_service import CombinedScorer, Scorer
from plaudit_service.errors import InvalidRequest, QueueFull
from plaudit_service.serving.served_model import _gather

CHAT = [{"role": "user", "content": "good"}]
LATE = {"X-Request-Timeout-S": "500"}


@pytest.fixture
def a_and_b(tiny_bundle):
    return [tiny_bundle(name="a"), tiny_bundle(name="b", heads={"x": 2.0})]


def statuses(answer):
    return [result["status"] for result in answer.json()["results"]]


def test_the_first_part_that_is_refused_cancels_the_others_and_its_error_is_raised():
    cancelled = []

    async def waits():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def refused():
        raise QueueFull("full")

    with pytest.raises(QueueFull):
        asyncio.run(_gather([waits(), refused()]))
    assert cancelled == [True]


def test_a_deadline_that_passes_in_one_part_expires_the_sequence_and_504_where_no_other_stands(a_and_b):
    async def scenario(app):
        app.engines["a"].gate.set()
        first = asyncio.create_task(app.score("good", model="b"))
        await until(app.engines["b"].entered.is_set)
        # Part a hands its sequence over at once; that of part b waits behind the first.
        some = asyncio.create_task(app.score("fine", "", model="x", headers=LATE))
        await until(lambda: (app.value("queued_sequences"), app.value("running_sequences")) == (1, 2))
        alone = asyncio.create_task(app.score("bad", model="x", headers=LATE))
        await until(lambda: (app.value("queued_sequences"), app.value("running_sequences")) == (3, 2))
        app.clock[0] += 501
        app.engines["b"].gate.set()
        assert (await first).json()["results"][0]["score"] == 2.0
        assert statuses(await some) == ["expired", "empty"]
        assert (await some).json()["results"][0]["detail"].startswith('part "b": the deadline passed')
        assert ((await alone).status_code, (await alone).json()["type"]) == (504, "urn:plaudit:expired")
        assert app.value("sequences_total", model="x", status="expired") == 2
        assert app.value("queued_sequences") == 0

    run_app(scenario, *a_and_b, combine=("x=0.5*a+0.5*b",))


def test_a_client_that_leaves_takes_the_sequences_of_every_part_out_of_its_queue(a_and_b):
    async def scenario(app):
        before = await app.fill_queue("a") + await app.fill_queue("b")
        leaving = app.start_post("/score", {"items": [{"text": "good"}], "model": "x"})
        await until(lambda: app.value("queued_sequences") == 2)
        await leaving.leave()
        assert app.value("queued_sequences") == 0
        assert app.value("cancelled_total") == 2
        assert app.value("requests_total", route="/score", outcome="cancelled") == 1
        app.open_gates()
        assert [(await task).json()["results"][0]["score"] for task in before] == [0.5, -1.0, 1.0, -2.0]
        assert [len(app.engines[part].lengths) for part in "ab"] == [2, 2]

    run_app(scenario, *a_and_b, combine=("x=0.5*a+0.5*b",), max_batch_tokens=1)


@pytest.mark.parametrize("limit", [{"max_queued_sequences": 1}, {"max_queued_tokens": 6}])
def test_a_request_that_one_part_has_no_room_for_is_refused_before_another_part_begins(a_and_b, limit):
    async def scenario(app):
        before = [*await app.fill_queue("b"), asyncio.create_task(app.score("awful", model="b"))]
        await until(lambda: app.value("queued_sequences") == 1)
        answer = await app.score("good " * 5, model="x")
        assert (answer.status_code, answer.json()["type"]) == (429, "urn:plaudit:queue-full")
        assert app.value("cancelled_total") == 0  # part a never had it
        app.open_gates()
        assert [(await task).json()["results"][0]["score"] for task in before] == [1.0, -2.0, -4.5]
        assert app.engines["a"].lengths == []
        assert (await app.score("good " * 5, model="x")).json()["results"][0]["score"] == 7.5

    run_app(scenario, *a_and_b, combine=("x=0.5*a+0.5*b",), max_batch_tokens=1, **limit)


def test_of_several_requests_for_the_last_place_in_one_queue_the_others_begin_in_none(a_and_b):
    async def scenario(app):
        before = await app.fill_queue("b")
        tasks = [asyncio.create_task(app.score(text, model="x")) for text in ("good", "awful", "good good", "bad bad")]
        await until(lambda: sum(task.done() for task in tasks) == 3)
        app.open_gates()
        answers = [await task for task in tasks]
        assert sorted(answer.status_code for answer in answers) == [200, 429, 429, 429]
        assert app.value("cancelled_total") == 0
        assert [len(app.engines[part].lengths) for part in "ab"] == [1, 3]
        assert [(await task).status_code for task in before] == [200, 200]

    run_app(scenario, *a_and_b, combine=("x=0.5*a+0.5*b",), max_batch_tokens=1, max_queued_sequences=1)


def test_a_dialect_waits_until_every_part_has_room(a_and_b):
    async def scenario(app):
        before = [*await app.fill_queue("b"), asyncio.create_task(app.score("awful", model="b"))]
        await until(lambda: app.value("queued_sequences") == 1)
        url, body = "/slime?model=x", {"prompt": "good", "response": ""}
        waiting = asyncio.create_task(app.client.post(url, json=body))
        await until(lambda: app.value("waiting_requests") == 1)
        late = await app.client.post(url, json=body, headers={"X-Request-Timeout-S": "0.05"})
        assert (late.status_code, late.json()["type"]) == (503, "urn:plaudit:unavailable")
        assert "while the request waited for room" in late.json()["detail"]
        assert (app.value("waiting_requests"), app.engines["a"].lengths) == (1, [])
        app.open_gates()
        assert (await waiting).json() == 1.5
        assert [(await task).status_code for task in before] == [200, 200, 200]

    settings = {"max_queued_sequences": 1, "max_batch_tokens": 1, "dialects": "slime"}
    run_app(scenario, *a_and_b, combine=("x=0.5*a+0.5*b",), **settings)


def test_a_dialect_waits_again_where_one_queue_is_full_by_the_time_that_the_other_has_room(a_and_b):
    async def scenario(app):
        asked = app.watch_for_room()
        before = [*await app.fill_queue("b"), asyncio.create_task(app.score("awful", model="b"))]
        await until(lambda: app.value("queued_sequences") == 1)
        waiting = asyncio.create_task(app.client.post("/slime?model=x", json={"prompt": "good", "response": ""}))
        await until(lambda: asked == ["a", "b"])  # and b has no room
        before += [*await app.fill_queue("a"), asyncio.create_task(app.score("awful", model="a"))]
        await until(lambda: app.value("queued_sequences") == 2)
        app.engines["b"].gate.set()
        await until(lambda: asked == ["a", "b", "a"])  # and a has none any more
        assert (app.value("queued_sequences"), app.value("waiting_requests")) == (1, 1)
        app.open_gates()
        assert (await waiting).json() == 1.5
        assert asked == ["a", "b", "a", "b"]
        scores = [(await task).json()["results"][0]["score"] for task in before]
        assert scores == [1.0, -2.0, -4.5, 0.5, -1.0, -2.25]

    settings = {"max_queued_sequences": 1, "max_batch_tokens": 1, "dialects": "slime"}
    run_app(scenario, *a_and_b, combine=("x=0.5*a+0.5*b",), **settings)


class OneIsNotFinite:
    """An engine that gives NaN for sequences of one length."""

    def __init__(self, engine, length):
        self.name, self.tolerance, self.promises_bits = engine.name, engine.tolerance, True
        self.costs = engine.costs
        self._engine, self._length = engine, length

    def run(self, batch, prefix=None):
        heads = self._engine.run(batch, prefix)
        heads[[len(text.token_ids) == self._length for text in batch]] = np.nan
        return heads


def test_what_one_part_cannot_score_fails_that_item_alone_and_names_the_part(tiny_bundle):
    async def scenario(app):
        app.open_gates()
        model = app.service.pipelines["b"].model
        model.engine = OneIsNotFinite(model.engine, length=4)
        answer = await app.score("good", "good " * 3, "good " * 30, "good good", model="x")
        assert statuses(answer) == ["ok", "non_finite", "too_long", "ok"]
        results = answer.json()["results"]
        assert [result["score"] for result in results] == [1.0, None, None, 2.0]
        assert results[1]["detail"] == 'part "b": the model\'s score is not a finite number'
        assert results[2]["detail"].startswith('part "a": items[2]: 31 tokens, limit 24 (model "a")')

    run_app(scenario, tiny_bundle(name="a", max_tokens=24), tiny_bundle(name="b"), combine=("x=min(a,b)",))


def test_parts_with_different_tokenizers_score_texts_and_chats_each_in_its_own_way_and_refuse_ids(tiny_bundle):
    bundles = [tiny_bundle(name="a"), tiny_bundle(name="b", more_words=["great"])]

    async def scenario(app):
        app.open_gates()
        known, great = (await app.score("good fine", "great", model="x")).json()["results"]
        assert (known["score"], known["heads"]) == (3.0, {"a": 1.5, "b": 1.5})
        assert (great["status"], great["detail"][:8]) == ("failed", 'part "b"')  # part a takes it for an unknown word
        items = [{"text": "good"}, {"token_ids": [1, 4]}]
        answer = await app.client.post("/score", json={"items": items, "model": "x"})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:plaudit:invalid-request")
        assert answer.json()["detail"] == (
            'items[1].token_ids: the parts of "x" (a, b) have different tokenizers; send text or messages instead, or '
            "ask each part by its own name"
        )
        ids = await app.client.post("/classify", json={"model": "x", "input": [1, 4], "use_activation": False})
        assert (ids.status_code, ids.json()["detail"]) == (422, answer.json()["detail"].replace("[1]", "[0]", 1))
        chat = [{"messages": CHAT, "completions": ["fine"]}]
        (chat,) = (await app.client.post("/score", json={"items": chat, "model": "x"})).json()["results"]
        assert (chat["score"], chat["heads"]) == (3.0, {"a": 1.5, "b": 1.5})
        for name in "ab":
            answer = await app.client.post("/score", json={"items": items, "model": name})
            assert [result["score"] for result in answer.json()["results"]] == [1.0, 1.0]

    run_app(scenario, *bundles, combine=("x=a+b",), dialects="vllm")
    with pytest.raises(InvalidRequest, match=r"items\[0\].token_ids: the parts of .* different tokenizers"):
        CombinedScorer("x=a+b", [Scorer(bundle) for bundle in bundles]).score([{"token_ids": [1, 4]}])


def test_an_ensemble_is_scored_as_by_hand(tiny_bundle):
    # The parts score 1, 1, 5 and 5: mean 3, standard deviation 2, variance 4.
    bundles = [tiny_bundle(name=f"m{n}", heads={"x": weight}) for n, weight in enumerate((1.0, 1.0, 5.0, 5.0))]
    parts = "m0,m1,m2,m3"
    by_hand = {
        f"wco=min({parts})": 1.0,
        f"one=mean-std({parts})": 3.0 - 2.0,
        f"half=mean-0.5*std({parts})": 3.0 - 0.5 * 2.0,
        # Coste et al. subtract lambda x variance: here, lambda = 0.75 is K = 0.75 x 2.
        f"uwo=mean-1.5*std({parts})": 3.0 - 0.75 * 4.0,
        "mean=" + "+".join(f"0.25*{part}" for part in parts.split(",")): 3.0,
    }

    async def scenario(app):
        app.open_gates()
        for formula, score in by_hand.items():
            (result,) = (await app.score("good", model=formula.split("=")[0])).json()["results"]
            assert result["score"] == score
            assert result["heads"] == {"m0": 1.0, "m1": 1.0, "m2": 5.0, "m3": 5.0}

    run_app(scenario, *bundles, combine=tuple(by_hand))
