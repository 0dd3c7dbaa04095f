from plaudit_export.checks.report import describe_bundle, describe_parity, describe_verdict, score_std
from plaudit_service.bundles.bundle import Golden
from plaudit_service.serving.parity import ParityReport, ParityRow


def row(index: int, served: float, problem: str | None = None, shared: float | None = None) -> ParityRow:
    served_scores = {"alone": served, "batched": served, "mixed": served, "shared": shared}
    return ParityRow(index=index, num_tokens=5, reference=1.0, allowed=1e-5, problem=problem, **served_scores)


def test_the_verdict_names_the_largest_difference():
    verdict = describe_verdict(ParityReport((row(0, 1.0), row(1, 1.5))))
    assert verdict == "2 golden texts: largest |served - reference| 5.0e-01; alone and batched the same bits"


def test_the_verdict_says_how_far_a_shared_prefix_moves_a_score():
    assert describe_verdict(ParityReport((row(0, 1.0, shared=1.0),))).endswith("shared prefix the same bits")
    assert describe_verdict(ParityReport((row(0, 1.0, shared=1.5),))).endswith("shared prefix 5.0e-01 apart")


def test_every_failed_text_is_marked_in_the_table():
    lines = describe_parity(ParityReport((row(0, 1.0), row(1, 1.5), row(2, 1.0, "other ids")))).splitlines()
    assert [("<-" in line) for line in lines] == [False, False, True, True, False]
    assert "limit 1.0e-05" in lines[2]
    assert "other ids" in lines[3]


def test_a_bundle_is_described_by_what_changes_its_scores(causal_bundle):
    text = describe_bundle(causal_bundle.bundle)
    for fact in ("tiny-llama", causal_bundle.bundle.fingerprint, "sdpa", "'<|im_end|>' (3)", "score x 1", "256"):
        assert fact in text


def test_the_spread_of_scores_is_their_population_deviation():
    golden = [Golden(item={}, token_ids=(1,), heads=(score,), score=score) for score in (1.0, 3.0)]
    assert score_std(golden) == 1.0
