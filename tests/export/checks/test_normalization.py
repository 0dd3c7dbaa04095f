import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_export.checkpoints.rules import Options, TextFile
from plaudit_export.checks import normalization
from plaudit_export.checks.text_files import read_items
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import tiny_encoder_checkpoint
from plaudit_service.bundles.bundle import Head, Normalization, load_bundle, sha256_of
from plaudit_service.engine.model import Model
from plaudit_service.serving.scorer import Scorer
from plaudit_service.testing import write_tiny_bundle
from plaudit_service.text.tokenization import TokenizedText

TEXTS = ["The quick brown fox.", "How do I boil an egg?", "No.", "return left + right", "one two three four five"]


def test_the_mean_and_the_population_deviation_are_taken():
    scores = np.array([1.0, 2.0, 6.0])
    assert normalization.fit(scores, scale=True) == Normalization(mean=3.0, std=2.160247)
    assert normalization.fit(scores, scale=False) == Normalization(mean=3.0, std=1.0)


def test_last_bits_that_another_cpu_gives_do_not_change_the_normalization():
    scores = np.array([0.1, 0.7, -0.4])
    assert normalization.fit(np.nextafter(scores, 9), scale=True) == normalization.fit(scores, scale=True)


def test_texts_that_all_score_alike_cannot_be_brought_to_deviation_1():
    with pytest.raises(SourceError, match="all 3 texts score 2; give texts that differ"):
        normalization.fit(np.full(3, 2.0), scale=True)
    assert normalization.fit(np.full(3, 2.0), scale=False).mean == 2


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    return tiny_encoder_checkpoint(tmp_path_factory.mktemp("two") / "it", num_labels=2, num_hidden_layers=1)


@pytest.mark.parametrize("scale", [True, False])
def test_reference_texts_get_mean_0_and_deviation_1_and_raw_scores_stay(two_heads, tmp_path, scale):
    file = tmp_path / "reference.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    heads = (Head(name="help", weight=0.7), Head(name="harm", weight=-0.3))
    texts = TextFile(read_items("--normalize-on", file), sha256_of(file))
    options = Options(heads=heads, normalize_on=texts, normalize_std=scale)
    exported = export_checkpoint(str(two_heads), tmp_path / "bundle", options)
    source = exported.bundle.manifest.normalization_source
    assert (source.num_texts, source.sha256) == (len(TEXTS), sha256_of(file))
    scorer = Scorer(exported.bundle)
    scores, raw = scorer.score(TEXTS), scorer.score(TEXTS, raw=True)
    assert statistics.fmean(scores.floats) == pytest.approx(0, abs=1e-6)
    deviation = statistics.pstdev(scores.floats)
    assert deviation == pytest.approx(1 if scale else statistics.pstdev(raw.floats), abs=1e-6)
    fitted = exported.bundle.scoring.normalization
    for score, raw_score in zip(scores, raw, strict=True):
        weighed = 0.7 * score.heads["help"] + -0.3 * score.heads["harm"]
        assert raw_score.heads == score.heads
        assert raw_score.score == weighed
        assert score.score == (weighed - fitted.mean) / fitted.std


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory):
    return load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("hand-made") / "bundle"))


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-10, 10)), min_size=1, max_size=4),
    st.floats(-10, 10),
    st.floats(0.01, 10),
)
def test_weights_and_normalization_are_computed_in_float64_head_after_head(hand_made, heads, mean, std):
    named = tuple(Head(name=str(at), weight=weight) for at, (_, weight) in enumerate(heads))
    fields = {"heads": named, "normalization": Normalization(mean=mean, std=std)}
    manifest = hand_made.manifest.model_copy(update={"scoring": hand_made.scoring.model_copy(update=fields)})
    model = Model(replace(hand_made, manifest=manifest), engine=None)
    text = TokenizedText(np.array([1]), None, 1, truncated=False)
    values = tuple(value for value, _ in heads)
    total = np.float64(0)
    for value, weight in heads:
        total += np.float64(weight) * np.float64(value)
    assert model.result(text, values, raw=True).score == total
    assert model.result(text, values, raw=False).score == (total - np.float64(mean)) / np.float64(std)
