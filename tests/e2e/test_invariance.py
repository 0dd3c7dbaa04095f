"""Promise 2: a score is a function of the text alone; on ONNX Runtime CPU in float32, to the bit."""

import asyncio
from math import nan
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit_client import AsyncRewardClient, RewardClient
from plaudit_service import Scorer
from plaudit_service.items import TextItem
from plaudit_service.serving.parity import check
from plaudit_service.text.tokenization import Asked

words = st.sampled_from(["the", "egg", "boils", "Mir", "geht", "def", "return", "1+1", "é", "😀", "a\nb", "no"])
texts = st.lists(words, min_size=1, max_size=40).map(" ".join)


@pytest.fixture(scope="module", params=["causal_bundle", "encoder_bundle"])
def bundle(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def scorers(bundle):
    return {budget: Scorer(bundle, max_batch_tokens=budget) for budget in (1, 64, 1024)}


@pytest.fixture(scope="module")
def causal_scorer(causal_bundle):
    return Scorer(causal_bundle)


@pytest.fixture(scope="module")
def plain_scorer(causal_bundle):
    return Scorer(causal_bundle, share_prefixes=False)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(texts, min_size=1, max_size=24), st.randoms(use_true_random=False))
def test_a_score_does_not_depend_on_its_batch_mates(scorers, batch, random):
    alone = {text: scorers[1].score([text]).floats[0] for text in batch}
    order = random.sample(batch, len(batch))
    for scorer in scorers.values():
        assert dict(zip(order, scorer.score(order).floats, strict=True)) == alone


def test_golden_texts_get_the_same_bits_alone_batched_and_continued(bundle, scorers):
    report = check(scorers[64])
    assert report.batch_invariant
    assert report.batch_max_abs_diff == 0
    is_causal = scorers[64].bundle.scoring.kind == "causal"
    assert any(row.shared is not None for row in report.rows) == is_causal


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(texts)
def test_a_causal_score_is_the_same_wherever_its_prefix_is_cut(causal_scorer, text):
    model = causal_scorer.model
    (sequence,) = model.tokenization.tokenize([TextItem(text=text)])
    (plain,) = model.compute([sequence])
    assert {model.compute_continued(sequence, cut) for cut in range(1, len(sequence.token_ids))} <= {plain}


stems = st.lists(words, min_size=20, max_size=40).map(" ".join)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(stems, min_size=1, max_size=3), st.data())
def test_a_score_does_not_depend_on_what_it_shares(causal_scorer, plain_scorer, stems, data):
    batch = [data.draw(st.sampled_from(stems)) + " " + data.draw(texts) for _ in range(data.draw(st.integers(2, 16)))]
    # Also of a text that is too long: a status, and no number.
    assert list(causal_scorer.score(batch)) == list(plain_scorer.score(batch))


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(stems, min_size=1, max_size=2), st.data())
def test_values_along_a_text_are_the_same_alone_batched_and_shared_and_move_no_score(
    causal_scorer, plain_scorer, stems, data
):
    batch = [data.draw(st.sampled_from(stems)) + " " + data.draw(texts) for _ in range(data.draw(st.integers(2, 8)))]
    alone = [plain_scorer.score([text], along="tokens")[0] for text in batch]
    assert list(plain_scorer.score(batch, along="tokens")) == alone
    assert list(causal_scorer.score(batch, along="tokens")) == alone
    scores = plain_scorer.score(batch).floats
    assert np.array_equal([nan if each.score is None else each.score for each in alone], scores, equal_nan=True)
    assert all(each.along.scores[-1] == each.score for each in alone if each.ok)


def test_who_asks_for_values_and_who_does_not_share_a_batch_and_a_prefix(causal_scorer):
    model = causal_scorer.model
    items = [TextItem(text=f"{'the egg boils ' * 8} {'no ' * number}") for number in range(6)]
    plain, asking = (model.tokenization.tokenize(items, Asked(along=along)) for along in ("none", "tokens"))
    mixed = [text if number % 2 else other for number, (text, other) in enumerate(zip(plain, asking, strict=True))]
    num_shared = common_prefix(plain)
    assert num_shared > 16
    for num_prefix_tokens in (0, num_shared):
        for number, outcome in enumerate(model.compute(mixed, num_prefix_tokens)):
            (score,), (along,) = model.compute([plain[number]]), model.compute([asking[number]])
            if number % 2:
                assert outcome == score
            else:
                assert outcome.heads == along.heads == score
                assert np.array_equal(outcome.tokens, along.tokens)


def common_prefix(texts):
    """How many first tokens all have, and each has one more."""
    rows = [text.token_ids.tolist() for text in texts]
    return next(at for at, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1)


def test_completions_of_one_prompt_share_its_computation(causal_scorer, plain_scorer):
    prompt = "Wie geht es dir? the egg boils " * 6
    group = {"prompt": prompt, "completions": [f" no {number}" for number in range(8)]}
    before = causal_scorer.model.num_computed_prefix_tokens()
    scores = causal_scorer.score([group])
    num_computed = causal_scorer.model.num_computed_prefix_tokens() - before
    assert 64 < num_computed < min(score.num_tokens for score in scores)
    assert scores.floats == plain_scorer.score([group]).floats


def test_a_score_does_not_depend_on_how_it_was_sent(bundle, serve):
    batch = [f"the egg boils {'no ' * (number * 7 % 50)}{number}" for number in range(100)]
    expected = Scorer(bundle).score(batch).floats

    async def one_each(url):
        async with AsyncRewardClient(url, max_items_per_request=1, max_concurrency=32) as client:
            return (await client.score(batch)).floats

    with serve(bundle) as service:
        with RewardClient(service.url) as client:
            assert client.score(batch).floats == expected
            pairs = [{"prompt": text[:9], "completion": text[9:]} for text in batch]
            assert client.score(pairs).floats == expected
        assert asyncio.run(one_each(service.url)) == expected


def test_a_score_does_not_depend_on_whether_it_was_kept(bundle, serve):
    group = {"prompt": "the egg boils " * 12, "completions": [f" no {number}" for number in range(8)]}
    expected = Scorer(bundle, share_prefixes=False).score([group]).floats
    with serve(bundle, flags=["--score-cache-size", "100"]) as service, RewardClient(service.url) as client:
        assert [client.score([group]).floats for _ in range(3)] == [expected] * 3
        assert metric(service, "score_cache_hits_total") == 16


def test_tokens_are_computed_or_shared(causal_bundle, serve):
    group = {"prompt": "the egg boils " * 12, "completions": [f" no {number}" for number in range(8)]}
    with serve(causal_bundle) as service, RewardClient(service.url) as client:
        before = [metric(service, name) for name in ("computed_tokens_total", "shared_tokens_total")]
        scores = client.score([group])
        num_tokens = sum(score.num_tokens for score in scores)
        computed, shared = (
            metric(service, name) - value
            for name, value in zip(("computed_tokens_total", "shared_tokens_total"), before, strict=True)
        )
        assert computed + shared == num_tokens
        assert shared > computed
        assert metric(service, f'batch_invariant{{model="{scores.model}"}}') == 1
        assert metric(service, f'parity_max_abs_diff{{model="{scores.model}"}}') < 1e-5


def metric(service, name):
    """The value of a sample, by name and labels."""
    lines = httpx2.get(f"{service.url}/metrics").text.splitlines()
    (value,) = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"plaudit_{name} ")]
    return float(value)


def test_served_scores_are_those_of_the_checkpoint(bundle, serve):
    checkpoint = bundle.parent / "checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    batch = [f"Wie geht es dir? {'no ' * (number * 11 % 40)}" for number in range(40)]
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in batch]
    with serve(bundle) as service, RewardClient(service.url) as client:
        for score, reference in zip(client.score(batch), expected, strict=True):
            assert abs(score.score - reference) <= 1e-5 * max(1.0, abs(reference))


def test_served_values_along_a_text_are_those_of_the_checkpoint_at_every_token(causal_bundle, serve):
    checkpoint = causal_bundle.parent / "checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    prompt, completions = "Wie geht es dir? " * 4, [f"{'no ' * (number * 11 % 40)}😀é" for number in range(1, 12)]
    with torch.inference_mode():
        ids = [tokenizer(prompt + completion, return_tensors="pt") for completion in completions]
        expected = [model.score(model.model(**row).last_hidden_state)[0, :, 0].tolist() for row in ids]
    with serve(causal_bundle) as service, RewardClient(service.url) as client:
        scores = client.score([{"prompt": prompt, "completions": completions}], along="tokens")
        singly = [{"prompt": prompt, "steps": [completion[:5], completion[5:]]} for completion in completions]
        for score, references, by_step in zip(scores, expected, client.score(singly, along="steps"), strict=True):
            assert score.along.tokens == tuple(range(len(references)))
            assert not score.along.trained
            for value, reference in zip(score.along.scores, references, strict=True):
                assert abs(value - reference) <= 1e-5 * max(1.0, abs(reference))
            assert by_step.along.scores == tuple(score.along.scores[token] for token in by_step.along.tokens)
            assert by_step.score == score.score
