"""What an engine feeds to a graph: rows of one length, what a device wants padded, and what is asked for."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from plaudit_service.bundles.bundle import Bundle, Head, Manifest, Normalization, Scoring, Source, load_bundle
from plaudit_service.engine.engines import GraphEngine, padded_tokens
from plaudit_service.engine.model import HeadsAlong, Model
from plaudit_service.engine.prefixes import PrefixCache
from plaudit_service.engine.runtime import CPU_COSTS, Input
from plaudit_service.text.places import Places
from plaudit_service.text.token_ids import token_key
from plaudit_service.text.tokenization import TokenizedText

MAX_TOKENS = 20
FIRST_FORM = ("input_ids", "attention_mask", "position_ids", "prefix_index", "last_index")
SECOND_FORM = ("input_ids", "position_ids", "prefix_index", "last_index", "token_index", "present_index")


@dataclass
class FakeRuntime:
    """A graph of 2 heads of 4 numbers in a type that numpy does not have; remembers what it was fed."""

    named: tuple[str, ...]
    costs: Any = CPU_COSTS
    name: str = "fake"
    tolerance: float = 0.0
    promises_bits: bool = False
    prefix_cache_bytes: int = 0
    outputs: tuple[str, ...] = ("scores",)
    fed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, Input]:
        past = {f"past.0.{part}": Input((None, 2, None, 4), 2) for part in ("key", "value")}
        return {name: Input((None, None), 8) for name in self.named} | past

    def run(self, outputs, feeds):
        self.fed.append(feeds)
        return [np.zeros((len(feeds["input_ids"]), 1), dtype=np.float32)]

    def run_kept(self, outputs, feeds):
        self.fed.append(feeds)
        return [f"kept {name}" for name in outputs]

    def cut(self, kept, num_tokens):
        return f"{kept} of {num_tokens}"

    def no_tokens(self, name):
        return f"nothing of {name}"


def engine_on(runtime, kind="causal"):
    hashes = {"model.onnx": "0" * 64, "tokenizer.json": "0" * 64}
    scoring = Scoring(kind=kind, max_tokens=MAX_TOKENS, vocab_size=99, heads=(Head(name="score"),), sha256=hashes)
    source = Source(id="none", architecture="none", attention="none")
    manifest = Manifest(
        name="fake",
        scoring=scoring,
        tolerance=1e-5,
        opset=23,
        source=source,
        versions={},
        sha256={"golden.jsonl": "0" * 64},
    )
    return GraphEngine(Bundle(None, manifest, None, ()), runtime)


def text(length):
    return TokenizedText(np.arange(10, 10 + length), None, length, truncated=False)


def test_a_scoring_call_asks_for_no_keys_and_values():
    runtime = FakeRuntime(SECOND_FORM)
    engine_on(runtime).run([text(3), text(5)])
    (fed,) = runtime.fed
    assert set(fed) == set(runtime.inputs)
    assert fed["input_ids"].tolist() == [[10, 11, 12, 0, 0], [10, 11, 12, 13, 14]]
    assert fed["last_index"].tolist() == [2, 4]
    assert (len(fed["token_index"]), len(fed["present_index"])) == (0, 0)
    assert fed["past.0.key"] == "nothing of past.0.key"


def test_a_prefix_is_kept_to_its_last_token_and_continued():
    runtime = FakeRuntime(SECOND_FORM)
    engine = engine_on(runtime)
    first = engine.compute_prefix(text(3).token_ids)
    assert runtime.fed[-1]["present_index"].tolist() == [0, 1, 2]
    assert first.num_bytes == 3 * 2 * (2 * 4 * 2)  # tokens x (key, value) x heads x numbers x bytes
    assert first.past["past.0.value"] == "kept present.0.value of 3"
    second = engine.compute_prefix(text(7).token_ids, first)
    assert runtime.fed[-1]["input_ids"].tolist() == [[13, 14, 15, 16]]
    assert runtime.fed[-1]["present_index"].tolist() == list(range(7))
    assert runtime.fed[-1]["past.0.value"] == first.past["past.0.value"]
    assert second.num_tokens == 7


def test_a_graph_of_the_first_form_is_fed_its_mask():
    runtime = FakeRuntime(FIRST_FORM)
    engine = engine_on(runtime)
    prefix = engine.compute_prefix(text(2).token_ids)
    engine.run([text(3), text(4)], prefix)
    assert runtime.fed[-1]["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert "present_index" not in runtime.fed[-1]


@pytest.mark.parametrize(
    ("lengths", "num_prefix", "expected"),
    [
        ([1], 0, 8),
        ([8], 0, 8),
        ([3, 9], 0, 16),
        ([17], 0, MAX_TOKENS),  # no position beyond those that the model has
        ([19], 8, 12),
        ([11], 8, 8),
        ([4], 3, 5),  # the total length, the prefix's tokens included
        ([9, 11], 3, 13),
    ],
)
def test_rows_are_padded_to_a_multiple_where_the_device_wants_it(lengths, num_prefix, expected):
    runtime = FakeRuntime(SECOND_FORM, costs=replace(CPU_COSTS, row_multiple=8))
    engine = engine_on(runtime)
    prefix = engine.compute_prefix(text(num_prefix).token_ids) if num_prefix else None
    engine.run([text(length) for length in lengths], prefix)
    assert runtime.fed[-1]["input_ids"].shape == (len(lengths), expected)
    assert runtime.fed[-1]["position_ids"].max() < MAX_TOKENS


def test_padding_counts_as_computed_tokens():
    assert padded_tokens([3, 9], CPU_COSTS) == 18
    assert padded_tokens([1], CPU_COSTS) == 2
    assert padded_tokens([3, 9], replace(CPU_COSTS, row_multiple=8)) == 32


class CountingRuntime(FakeRuntime):
    """Gives every token its id as head value, and every row that of its last token."""

    def run(self, outputs, feeds):
        self.fed.append(feeds)
        ids = feeds["input_ids"].astype(np.float32)[..., None]
        last = ids[np.arange(len(ids)), feeds["last_index"]]
        return [{"scores": last, "token_scores": ids[:, feeds["token_index"]]}[name] for name in outputs]

    def run_kept(self, outputs, feeds):
        kept = super().run_kept(outputs, feeds)
        return [
            self.run(["token_scores"], feeds)[0] if name == "token_scores" else value
            for name, value in zip(outputs, kept, strict=True)
        ]

    def fetch(self, kept):
        return kept


def asking(length):
    everything = Places(np.arange(length), np.arange(length), None, None, None)
    return replace(text(length), places=everything)


def test_values_along_a_text_are_computed_as_far_as_the_longest_that_asks():
    runtime = CountingRuntime(SECOND_FORM, outputs=("scores", "token_scores"))
    engine = engine_on(runtime)
    assert engine.lacks_along is None
    heads, along = engine.run_along([asking(3), text(5), asking(2)])
    assert runtime.fed[-1]["token_index"].tolist() == [0, 1, 2]
    assert heads.tolist() == [[12], [14], [11]]
    assert [along[0].tolist(), along[2].tolist()] == [[[10], [11], [12]], [[10], [11]]]
    engine.run([asking(3)])
    assert len(runtime.fed[-1]["token_index"]) == 0


def test_values_in_a_prefix_are_kept_with_it_where_they_are_asked_for():
    runtime = CountingRuntime(SECOND_FORM, outputs=("scores", "token_scores"))
    engine = engine_on(runtime)
    plain = engine.compute_prefix(text(3).token_ids)
    first = engine.compute_prefix(text(3).token_ids, along=True)
    assert (plain.along, first.along.tolist()) == (None, [[10], [11], [12]])
    assert first.num_bytes == plain.num_bytes + 3 * 4
    second = engine.compute_prefix(text(5).token_ids, first, along=True)
    assert runtime.fed[-1]["token_index"].tolist() == [0, 1]
    _, (along,) = engine.run_along([asking(7)], second)
    assert runtime.fed[-1]["token_index"].tolist() == [0, 1]
    assert along.tolist() == [[10], [11], [12], [13], [14], [15], [16]]


def test_a_prefix_that_was_kept_without_values_is_computed_anew_for_who_asks(tiny_bundle):
    engine = engine_on(CountingRuntime(SECOND_FORM, outputs=("scores", "token_scores")))
    model = Model(load_bundle(tiny_bundle()), engine)
    model.prefixes = PrefixCache(10_000)
    assert model.compute([text(6)], 4) == [(15.0,)]
    kept = model.prefixes.get(token_key(text(4).token_ids))
    (outcome,) = model.compute([asking(6)], 4)
    assert (outcome.heads, outcome.tokens[:, 0].tolist()) == ((15.0,), [10, 11, 12, 13, 14, 15])
    assert model.num_computed_prefix_tokens() == 8
    anew = model.prefixes.get(token_key(text(4).token_ids))
    assert anew.along.tolist() == [[10], [11], [12], [13]]
    assert model.prefixes._num_bytes == anew.num_bytes == kept.num_bytes + 4 * 4
    assert model.compute([asking(7), text(6)], 4)[1] == (15.0,)
    assert model.num_computed_prefix_tokens() == 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_along_a_text_that_is_no_finite_number_leaves_no_number_at_all(tiny_bundle, value):
    model = Model(load_bundle(tiny_bundle()), engine_on(CountingRuntime(SECOND_FORM)))
    tokens = np.array([[1.0], [value], [3.0]], dtype=np.float32)
    result = model.result(asking(3), HeadsAlong((3.0,), tokens), raw=False)
    assert (result.status, result.detail) == ("non_finite", "the score of a token is not finite")
    assert (result.score, result.along) == (None, None)
    elsewhere = replace(asking(3), places=Places(np.array([0, 2]), np.array([0, 2]), None, None, np.array([0, 1])))
    result = model.result(elsewhere, HeadsAlong((3.0,), tokens), raw=False)
    assert (result.score, result.along.scores, result.along.steps) == (3.0, [1.0, 3.0], [0, 1])


def test_heads_are_weighed_and_normalized_along_a_text_as_at_its_end(tiny_bundle):
    bundle = load_bundle(tiny_bundle(heads={"a": 2.0, "b": -1.0}, normalization=Normalization(mean=1.0, std=4.0)))
    model = Model(bundle, engine_on(CountingRuntime(SECOND_FORM)))
    outcome = HeadsAlong((5.0, 3.0), np.array([[1.0, 1.0], [5.0, 3.0]], dtype=np.float32))
    assert model.result(asking(2), outcome, raw=False).along.scores == [0.0, 1.5]
    raw = model.result(asking(2), outcome, raw=True)
    assert (raw.along.scores, raw.score, raw.heads) == ([1.0, 7.0], 7.0, {"a": 5.0, "b": 3.0})
