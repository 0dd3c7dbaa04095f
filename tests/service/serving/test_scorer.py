import math
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaudit_service import CombinedScorer, Scorer
from plaudit_service.bundles.bundle import Normalization, load_bundle
from plaudit_service.errors import InvalidRequest, Mismatch, SettingsError, UnknownModel
from plaudit_service.http.wire import to_wire
from plaudit_service.items import TextItem
from plaudit_service.serving.parity import ParityReport, ParityRow, check, mixed_batches, score_mixed
from plaudit_service.testing import score_by_hand

texts = st.lists(st.sampled_from(["good", "fine", "bad", "awful"]), min_size=1, max_size=20).map(" ".join)


def test_every_item_form_gets_its_score_by_hand(tiny_bundle):
    scores = Scorer(tiny_bundle()).score(
        [
            "good fine",
            {"text": "good bad bad"},
            {"prompt": "good", "completion": " fine"},
            {"prompt": "bad", "completions": [" good", " bad bad"]},
            {"messages": [{"role": "user", "content": "good"}, {"role": "assistant", "content": "fine"}]},
            {"messages": [{"role": "user", "content": "bad"}], "completions": ["good", "awful"]},
            {"token_ids": [1, 4, 5]},
        ]
    )
    assert scores.floats == [1.5, -1.0, 1.5, 0.0, -3.0, 1.5, 0.0, -3.25, 1.5]


def test_a_failure_is_a_status_and_its_mates_keep_their_scores(tiny_bundle):
    scores = Scorer(tiny_bundle(max_tokens=8)).score(
        ["good", "crash", "fine", "good infinite", "", "[BOS]", "good " * 8, "bad"]
    )
    statuses = ["ok", "failed", "ok", "non_finite", "empty", "empty", "too_long", "ok"]
    assert [score.status for score in scores] == statuses
    assert [score.score for score in scores] == [1.0, None, 0.5, None, None, None, None, -1.0]
    assert [math.isnan(value) for value in scores.floats] == [status != "ok" for status in statuses]
    assert scores[6].detail == 'items[6]: 9 tokens, limit 8 (model "tiny"); shorten it or send truncation="left"'


def test_an_unknown_word_is_content_and_is_scored(tiny_bundle):
    assert Scorer(tiny_bundle()).score(["whatever"]).floats == [0.0]


def test_truncation_keeps_the_bos_and_the_end_or_the_start(tiny_bundle):
    scorer = Scorer(tiny_bundle(max_tokens=4))
    text = "good good fine bad bad"
    left, right = (scorer.score([text], truncation=side)[0] for side in ("left", "right"))
    assert (left.score, left.truncated, left.num_tokens) == (0.5 - 1 - 1, True, 6)
    assert (right.score, right.truncated, right.num_tokens) == (1 + 1 + 0.5, True, 6)


def test_normalization_applies_unless_raw_is_asked_for(tiny_bundle):
    scorer = Scorer(tiny_bundle(normalization=Normalization(mean=0.25, std=0.5)))
    assert scorer.score(["good"]).floats == [1.5]
    assert scorer.score(["good"], raw=True).floats == [1.0]


def test_several_heads_are_weighted_and_named(tiny_bundle):
    scorer = Scorer(tiny_bundle(heads={"helpful": 0.75, "harmless": 0.25}))
    (score,) = scorer.score(["good fine"])
    assert score.heads == {"helpful": 1.5, "harmless": 3.0}
    assert score.score == 0.75 * 1.5 + 0.25 * 3.0


def test_a_text_that_begins_with_bos_gets_no_second_one(tiny_bundle):
    scorer = Scorer(tiny_bundle())
    assert scorer.score(["[BOS] good"])[0].num_tokens == 2


def test_eos_is_appended_once_and_only_to_finished_texts(tiny_bundle):
    scorer = Scorer(tiny_bundle(append_eos=True))
    items = [{"text": "good"}, {"text": "good [EOS]"}, {"text": "good", "finished": False}]
    assert [score.num_tokens for score in scorer.score(items)] == [3, 3, 2]


def test_a_pair_model_scores_prompt_with_completion_and_one_turn_chats_only(tiny_bundle):
    scorer = Scorer(tiny_bundle(pair=True))
    chat = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "fine"}]
    items = [{"prompt": "good", "completion": "fine"}, {"messages": chat}]
    assert scorer.score(items).floats == [1.5, 1.5]
    for item in ({"text": "good"}, {"messages": [*chat, *chat]}):
        with pytest.raises(InvalidRequest, match=r"items\[0\].*trained on pairs"):
            scorer.score([item])


def test_messages_without_a_chat_template_are_refused_with_the_remedy(tiny_bundle):
    with pytest.raises(InvalidRequest, match=r"items\[0\].*no chat template; send prompt and completion"):
        Scorer(tiny_bundle(chat_template=None)).score([{"messages": [{"role": "user", "content": "good"}]}])


def test_a_template_that_refuses_the_messages_fails_that_item_alone(tiny_bundle):
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}good"
    scores = Scorer(tiny_bundle(chat_template=template)).score(
        [{"messages": [{"role": role, "content": "x"}]} for role in ("user", "system")]
    )
    assert [score.status for score in scores] == ["ok", "failed"]
    assert scores[1].detail == "items[1]: the chat template refused the messages: user first"


def test_another_model_fingerprint_or_engine_is_refused(tiny_bundle):
    scorer = Scorer(tiny_bundle())
    fingerprint = scorer.bundle.fingerprint
    pinned = scorer.score(["good"], model="tiny", fingerprint=fingerprint, engine="onnxruntime-cpu-fp32")
    assert pinned.floats == [1.0]
    for pin, error in (("model", UnknownModel), ("fingerprint", Mismatch), ("engine", Mismatch)):
        with pytest.raises(error):
            scorer.score(["good"], **{pin: "other"})


def test_ids_outside_of_the_vocabulary_are_refused(tiny_bundle):
    with pytest.raises(InvalidRequest, match=r"items\[0\]: token id 10, but the vocabulary .* has 10 entries"):
        Scorer(tiny_bundle()).score([{"token_ids": [10]}])


@pytest.fixture(scope="module")
def module_scorer(tmp_path_factory):
    from plaudit_service.testing import write_tiny_bundle

    return Scorer(write_tiny_bundle(tmp_path_factory.mktemp("scorer") / "bundle"), max_batch_tokens=64)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(texts, min_size=1, max_size=30))
def test_scores_come_in_order_whatever_the_batches(module_scorer, batch):
    scores = module_scorer.score(batch)
    assert scores.floats == [score_by_hand(text) for text in batch]
    assert [result.index for result in scores] == list(range(len(batch)))


def test_parity_holds_for_a_right_bundle_and_is_exact(tiny_bundle):
    report = check(Scorer(tiny_bundle()))
    assert report.ok
    assert report.max_abs_diff == 0
    assert report.batch_invariant


def test_parity_fails_when_one_of_several_heads_is_wrong_though_the_score_is_right(tiny_bundle):
    bundle = load_bundle(tiny_bundle(heads={"a": 1.0, "b": 1.0}))
    swapped = tuple(replace(golden, heads=golden.heads[::-1]) for golden in bundle.golden)
    report = check(Scorer(replace(bundle, golden=swapped)))
    assert not report.ok
    assert "head a: |served - reference|" in report.describe_worst()


class NoBatches:
    """An engine that takes one sequence at a time, as a graph traced with fixed rows does."""

    def __init__(self, engine):
        self.name, self.tolerance, self.promises_bits = engine.name, engine.tolerance, True
        self.costs = engine.costs
        self._engine = engine

    def run(self, batch, prefix=None):
        if len(batch) > 1:
            raise RuntimeError("one row only")
        return self._engine.run(batch, prefix)


def test_parity_fails_when_the_engine_cannot_batch_though_every_score_is_right(tiny_bundle):
    scorer = Scorer(tiny_bundle())
    scorer.model.engine = NoBatches(scorer.model.engine)
    report = check(scorer)
    assert all(row.ok for row in report.rows)
    assert not report.ok
    assert "the engine raised on" in report.describe_worst()


def test_an_engine_of_low_precision_may_be_off_by_its_part_of_the_golden_texts_deviation(tiny_bundle):
    # The golden scores are 1, 0.5, -44, 0 and 1: their standard deviation is 17.9.
    for offset, ok in ((4.0, True), (5.0, False)):
        scorer = Scorer(tiny_bundle(golden_offset=offset))
        scorer.model.engine.tolerance = 0.25
        assert check(scorer).ok is ok


def test_mixed_calls_hold_texts_of_unequal_length_and_every_text_once(tiny_bundle):
    scorer = Scorer(tiny_bundle())
    engine = scorer.model.engine = Recording(scorer.model.engine)
    texts = scorer.model.tokenization.tokenize([TextItem(text="good " * n) for n in (1, 9, 3, 20, 2, 0)])
    results = score_mixed(scorer.model, texts, mixed_batches(texts, max_padded_tokens=50))
    assert [results[place].score for place in range(6)] == [1.0, 9.0, 3.0, 20.0, 2.0, None]
    assert engine.lengths == [[21, 2], [10, 3, 4]]


class Recording:
    """An engine that remembers the lengths of each batch."""

    def __init__(self, engine):
        self.name, self.tolerance, self.promises_bits = engine.name, engine.tolerance, True
        self.costs = engine.costs
        self._engine = engine
        self.lengths = []

    def run(self, batch, prefix=None):
        self.lengths.append([len(text.token_ids) for text in batch])
        return self._engine.run(batch, prefix)


def test_a_text_without_a_score_is_no_proof_of_batch_invariance():
    row = ParityRow(
        0, 3, reference=1.0, alone=None, batched=1.0, mixed=1.0, shared=None, allowed=1e-5, problem="failed"
    )
    assert not ParityReport((row,)).batch_invariant


def test_parity_fails_on_wrong_reference_scores_and_says_by_how_much(tiny_bundle):
    report = check(Scorer(tiny_bundle(golden_offset=0.001)))
    assert not report.ok
    assert report.max_abs_diff == pytest.approx(0.001)
    assert "|served - reference| = 0.001, limit" in report.describe_worst()


ITEMS = [
    {"text": "good fine"},
    {"prompt": "bad", "completions": [" good", " awful awful"]},
    {"messages": [{"role": "user", "content": "good"}], "completions": ["fine"]},
    {"token_ids": [1, 4]},
    {"text": "good " * 30},
    {"text": "crash"},
    {"text": "infinite"},
    {"text": ""},
]


def test_in_process_a_combination_gives_what_it_gives_over_http(serve, tiny_bundle):
    helpful = tiny_bundle(name="helpful", heads={"x": 0.3, "y": 0.1})
    harmless = tiny_bundle(name="harmless", max_tokens=24, normalization=Normalization(mean=1.0, std=3.0))
    formulas = ("safe=0.7*helpful+0.3*harmless", "wary=mean-0.3*std(helpful,harmless)")
    scorers = [Scorer(harmless), Scorer(helpful)]
    with serve(helpful, harmless, flags=[f"--combine={formula}" for formula in formulas]) as service:
        for formula in formulas:
            scorer = CombinedScorer(formula, scorers)
            for fields in ({}, {"raw": True}, {"truncation": "left"}):
                body = {"items": ITEMS, "model": formula.split("=")[0], **fields}
                served = httpx2.post(f"{service.url}/score", json=body).json()
                scores = scorer.score(ITEMS, **fields)
                assert served["results"] == [to_wire(result) for result in scores]
                for part in scorers:
                    own = part.score(ITEMS, **fields)
                    assert [score.heads[own.model] for score in scores if score.ok] == [
                        result.score for result, score in zip(own, scores, strict=True) if score.ok
                    ]
                identity = {"model": scores.model, "fingerprint": scores.fingerprint, "engine": scores.engine}
                assert identity == {name: served[name] for name in identity}


def test_in_process_a_combination_needs_its_parts_and_answers_to_its_name_alone(tiny_bundle):
    a, b = Scorer(tiny_bundle(name="a")), Scorer(tiny_bundle(name="b", heads={"x": 2.0}))
    scorer = CombinedScorer("x=a+b", [a, b])
    assert scorer.score(["good"], model="x").floats == [3.0]
    with pytest.raises(UnknownModel, match='model "a" is not loaded; here: x'):
        scorer.score(["good"], model="a")
    with pytest.raises(SettingsError, match='part "c" is not a loaded bundle'):
        CombinedScorer("x=a+c", [a, b])
    with pytest.raises(SettingsError, match='two bundles are named "a"'):
        CombinedScorer("x=a+b", [a, b, a])


def test_what_a_model_does_not_have_along_a_text_is_refused_with_the_reason(tiny_bundle):
    first_form = Path(__file__).parents[1] / "bundles" / "first_form"
    a, b = Scorer(tiny_bundle(name="a")), Scorer(tiny_bundle(name="b", heads={"x": 2.0}))
    for scorer, fields, why in (
        (a, {"along": "tokens"}, 'model "a" has no values along a text: it is of kind encoder'),
        (Scorer(first_form), {"along": "tokens"}, "exported before graphs had values for tokens; export it again"),
        (Scorer(tiny_bundle(pair=True)), {"explain": True}, "was trained on pairs"),
        (CombinedScorer("x=a+b", [a, b]), {"along": "steps"}, 'along: "x" combines a, b, each with tokens'),
        (CombinedScorer("x=a+b", [a, b]), {"explain": True}, 'explain: "x" combines a, b'),
    ):
        with pytest.raises(InvalidRequest, match=why):
            scorer.score([{"prompt": "good", "steps": ["bad"]}], **fields)


def test_the_text_that_was_scored_is_shown_where_that_is_asked_for(tiny_bundle):
    chat = {"messages": [{"role": "user", "content": "good"}], "completions": ["bad", "crash", "bad " * 70]}
    scorer = Scorer(tiny_bundle())
    explained = scorer.score([chat, {"prompt": "a", "steps": [" b", " c"]}, {"token_ids": [4]}], explain=True)
    texts = [f"user good assistant {completion} " for completion in chat["completions"]]
    assert [result.text for result in explained] == [*texts, "a b c", None]
    assert [str(result.status) for result in explained] == ["ok", "failed", "too_long", "ok", "ok"]
    assert {result.text for result in scorer.score([chat])} == {None}
