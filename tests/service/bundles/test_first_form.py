"""A bundle that plaudit exported before causal graphs had their second form: it loads and scores as it did."""

from pathlib import Path

import pytest

from plaudit_service import Scorer
from plaudit_service.bundles.bundle import load_bundle
from plaudit_service.serving.parity import check

# A tiny random Llama with grouped heads, exported at db573d1.
FIRST_FORM = Path(__file__).parent / "first_form"


def test_a_bundle_of_the_first_form_keeps_its_fingerprint():
    fingerprint = "sha256:6f6485aceafb8f9981e6c60eb99fd6675e9de3e1cc9389bc857309dd00c60725"
    assert load_bundle(FIRST_FORM).fingerprint == fingerprint


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_bundle_of_the_first_form_gives_its_reference_scores(runtime):
    report = check(Scorer(FIRST_FORM, runtime=runtime))
    assert report.ok, report.describe_worst()
    assert any(row.shared is not None for row in report.rows)


def test_a_bundle_of_the_first_form_gives_the_same_bits_on_shared_and_chained_prefixes():
    prompt = "Zyx wvu tsr qpo nml kji hgf edc ba 98765 "
    group = {"prompt": prompt, "completions": ["Put it into water.", "No.", "Wie geht es dir?", "Once upon a time"]}
    scorer = Scorer(FIRST_FORM)
    shared = scorer.score([group, {"prompt": prompt + "Put it ", "completions": ["away", "back", "into it"]}]).floats
    assert scorer.model.num_computed_prefix_tokens() > 0
    alone = Scorer(FIRST_FORM, share_prefixes=False)
    texts = [prompt + end for end in group["completions"]] + [
        prompt + "Put it " + e for e in ("away", "back", "into it")
    ]
    assert shared == [alone.score([text]).floats[0] for text in texts]
