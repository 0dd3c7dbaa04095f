import math

import bench
import pytest
import servers
import throughput
from throughput import EXACT, IN_PROCESS, PLAIN


def fixed(scores):
    return lambda items: scores[: len(items)]


def test_every_way_is_measured_on_every_lot_and_the_order_turns():
    calls = []

    def way(name):
        def run(items):
            calls.append((name, items))
            return [0.5] * len(items)

        return run

    ways = {IN_PROCESS: way("a"), EXACT: way("b"), PLAIN: way("c")}
    rows = throughput.measure("part", ways, [["t1"], ["t2"]], warm_up=["w"])
    assert calls == [(n, ["w"]) for n in "abc"] + [(n, ["t1"]) for n in "abc"] + [(n, ["t2"]) for n in "bca"]
    assert [row.server for row in rows] == [IN_PROCESS, EXACT, PLAIN]
    assert [set(row.ratios) for row in rows] == [{IN_PROCESS, PLAIN}] * 3
    assert rows[0].ratios[IN_PROCESS] == 1


def test_the_float32_service_has_to_give_the_bits_of_in_process():
    ways = {IN_PROCESS: fixed([1.0]), EXACT: fixed([math.nextafter(1.0, 2.0)])}
    with pytest.raises(AssertionError, match="part, service onnxruntime: other bits"):
        throughput.measure("part", ways, [["t"]], warm_up=["t"])


def test_a_plain_float32_handler_that_scores_something_else_is_not_a_comparison():
    ways = {IN_PROCESS: fixed([1.0]), "plain handler float32": fixed([1.1])}
    with pytest.raises(AssertionError, match="it computes something else"):
        throughput.measure("part", ways, [["t"]], warm_up=["t"])


def test_bf16_may_differ_and_says_by_how_much():
    ways = {IN_PROCESS: fixed([1.0, 2.0]), PLAIN: fixed([1.0, 2.25])}
    rows = throughput.measure("part", ways, [["t", "u"]], warm_up=["t"])
    assert rows[1].more["largest_difference"] == 0.25


def test_a_missing_score_ends_the_benchmark():
    ways = {IN_PROCESS: fixed([1.0]), PLAIN: fixed([math.nan])}
    with pytest.raises(AssertionError, match="a score is missing"):
        throughput.measure("part", ways, [["t"]], warm_up=["t"])


def test_service_and_in_process_give_the_same_scores_over_a_real_socket(serve, causal_bundle):
    from plaudit_service import Scorer

    items = [{"prompt": "How do I", "completions": [" boil an egg?", " sing?"]}, {"prompt": "a", "completions": ["b"]}]
    texts = ["How do I boil an egg?", "How do I sing?", "ab"]
    expected = Scorer(causal_bundle).score(items).floats
    with serve(causal_bundle) as service:
        assert throughput.one_request(service.url)(items) == expected
        assert throughput.singles(service.url, 2)(items) == expected
        assert throughput.singles(service.url, 2)(texts) == expected
    assert throughput.texts_of(items) == texts


def test_a_runtime_that_plaudit_serve_does_not_offer_is_left_out_with_a_reason():
    assert servers.missing_runtime("onnxruntime") is None
    assert servers.missing_runtime("abacus").startswith("the installed plaudit-serve offers --runtime onnxruntime")


def test_samples_of_a_metric_are_added_up_over_its_labels():
    exposition = '# HELP a b\na_total{x="1"} 2.0\na_total{x="2"} 3.0\na_total_more 9.0\na 1.0\n'
    assert servers.sum_of_samples(exposition, "a_total") == 5
    assert servers.sum_of_samples(exposition, "absent") == 0


def test_quick_sizes_are_smaller_and_an_option_wins():
    assert bench.parse([]).sizes == bench.Sizes()
    assert bench.parse(["--quick"]).sizes == bench.QUICK
    assert bench.parse(["--quick", "--rounds", "7"]).sizes.rounds == 7
    assert bench.parse(["--only", "idle,encoder"]).only == ["idle", "encoder"]


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--rounds", "0"], ["--texts", "x"]])
def test_a_wrong_option_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.parse(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plain_handler_gives_the_scores_of_the_checkpoint(causal_bundle, dtype):
    from checkpoints import Subject

    from plaudit_service import Scorer

    texts = ["How do I boil an egg?", "ab", "The quick brown fox jumps over the lazy dog"]
    expected = Scorer(causal_bundle).score(texts).floats
    with servers.plain_handler(Subject("tiny", causal_bundle.parent / "checkpoint", causal_bundle), dtype) as server:
        scores = throughput.plain_one_request(server.url)(texts)
        assert throughput.plain_singles(server.url, 3)(texts) == pytest.approx(scores, abs=0.05)
    assert scores == pytest.approx(expected, abs=1e-4 if dtype == "float32" else 0.2)
