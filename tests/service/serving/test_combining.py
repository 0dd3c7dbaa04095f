"""Formulas over scores: parsed, computed as numpy does, and served as models of their own."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_service.bundles.bundle import Normalization, load_bundle
from plaudit_service.errors import SettingsError
from plaudit_service.results import Identity, Result, Status
from plaudit_service.serving.combining import WORST_FIRST, parse_combination

finite = st.floats(-1e6, 1e6)
pairs = st.lists(st.tuples(finite, finite), min_size=2, max_size=8)


def names(number):
    return [f"m{index}" for index in range(number)]


@given(pairs)
def test_a_weighted_sum_is_numpys(weighted):
    weights, scores = np.array(weighted).T
    formula = " + ".join(
        f"{weight!r} * {name}" for weight, name in zip(weights.tolist(), names(len(weights)), strict=True)
    )
    combination = parse_combination(f"x={formula}")
    assert combination.compute(scores.tolist()) == pytest.approx(weights @ scores, rel=1e-12, abs=1e-3)


@given(st.lists(finite, min_size=2, max_size=8), st.floats(0, 10))
def test_min_and_mean_less_deviation_are_numpys(scores, k):
    parts = ",".join(names(len(scores)))
    assert parse_combination(f"x=min({parts})").compute(scores) == np.min(scores)
    for written, factor in (("mean-std", 1.0), (f"mean-{k!r}*std", k)):
        expected = np.mean(scores) - factor * np.std(scores)
        assert parse_combination(f"x={written}({parts})").compute(scores) == pytest.approx(expected, rel=1e-9, abs=1e-5)


def test_by_hand():
    assert parse_combination("x=0.75*a+b+-0.5*c").compute([4, 1, 2]) == 3.0
    assert parse_combination("x=mean-0.5*std(a,b)").compute([1, 3]) == 1.5


def ok(score, **options):
    return Result(Status.OK, score, 3, **options)


def failed(status):
    return Result(status, None, 7, detail="why")


def test_a_result_names_the_score_of_each_part_the_longest_text_and_any_truncation():
    combination = parse_combination("x=0.5*a+0.5*b")
    result = combination.combine([ok(1.0), Result(Status.OK, 2.0, 9, truncated=True)])
    assert result == Result(Status.OK, 1.5, 9, truncated=True, heads={"a": 1.0, "b": 2.0})


@given(st.lists(st.sampled_from(Status), min_size=2, max_size=4))
def test_a_failed_part_fails_the_item_with_the_worst_status(statuses):
    combination = parse_combination(f"x=min({','.join(names(len(statuses)))})")
    result = combination.combine([ok(1.0) if status is Status.OK else failed(status) for status in statuses])
    expected = next((status for status in WORST_FIRST if status in statuses), Status.OK)
    assert (result.status, result.score is None) == (expected, expected is not Status.OK)
    if not result.ok:
        assert result.detail == f'part "m{statuses.index(expected)}": why'


def test_the_worst_status_is_defined_for_every_failure():
    assert set(WORST_FIRST) == set(Status) - {Status.OK}


@pytest.mark.parametrize("formula", ["1e308*a+1e308*b", "mean-std(a,b)"])
def test_what_overflows_is_no_score(formula):
    result = parse_combination(f"x={formula}").combine([ok(1e308), ok(-1e308 if "std" in formula else 1e308)])
    assert (result.status, result.score) == (Status.NON_FINITE, None)


def test_the_fingerprint_is_of_formula_and_parts_and_of_no_name():
    parts = [Identity("a", "sha256:1", "cpu"), Identity("b", "sha256:2", "gpu")]
    combined = parse_combination("x=0.5*a+0.5*b").identity(parts)
    assert (combined.name, combined.engine) == ("x", "cpu+gpu")
    renamed = [Identity("c", "sha256:1", "cpu"), Identity("d", "sha256:2", "gpu")]
    assert parse_combination("y= .5 * c + .5*d").identity(renamed).fingerprint == combined.fingerprint
    others = ["x=0.5*a+0.4*b", "x=min(a,b)", "x=mean-std(a,b)", "x=mean-2*std(a,b)"]
    different = {parse_combination(other).identity(parts).fingerprint for other in others}
    assert len(different | {combined.fingerprint}) == 5
    changed = [parts[0], Identity("b", "sha256:3", "gpu")]
    assert parse_combination("x=0.5*a+0.5*b").identity(changed).fingerprint != combined.fingerprint


WRONG = [
    ("0.7*a", "NAME= is missing"),
    ("=a", "NAME= is missing"),
    ("x=", "'' is not a name of a model"),
    ("x=nan*a", "weight 'nan' is not a finite number"),
    ("x=1e999*a", "weight '1e999' is not a finite number"),
    ("x=a*0.5", "weight 'a' is not a finite number"),
    ("x=0.5*a-0.5*b", "subtract with"),
    ("x=a+a", 'part "a" is named twice'),
    ("x=min(a)", "at least two parts"),
    ("x=mean-inf*std(a,b)", "K 'inf' is not a finite number"),
    ("x=max(a,b)", "'max(a,b)' is not a name of a model"),
    ("x=min(a,__import__('os'))", "is not a name of a model"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_what_is_no_formula_is_told(text, expected):
    with pytest.raises(SettingsError) as error:
        parse_combination(text)
    assert expected in str(error.value)


def score(service, **body):
    return httpx2.post(f"{service.url}/score", content=json.dumps(body))


def test_a_combination_is_served_as_a_model_of_its_own(serve, tiny_bundle):
    helpful = tiny_bundle(name="helpful", heads={"x": 2.0})
    harmless = tiny_bundle(name="harmless", max_tokens=24, normalization=Normalization(mean=1.0, std=2.0))
    env = {"PLAUDIT_COMBINE": "safe=0.75*helpful + 0.5*harmless; careful=min(helpful,harmless)"}
    with serve(helpful, harmless, env=env) as service:
        items = [{"text": "good fine"}, {"text": "good " * 30}, {"text": "crash"}, {"token_ids": [1, 4]}]
        answer = score(service, items=items, model="safe").json()
        assert [result["index"] for result in answer["results"]] == [0, 1, 2, 3]
        assert answer["results"][0] == {
            "index": 0,
            "status": "ok",
            "score": 0.75 * 3.0 + 0.5 * 0.25,
            "num_tokens": 3,
            "truncated": False,
            "heads": {"helpful": 3.0, "harmless": 0.25},
        }
        assert [result["status"] for result in answer["results"]] == ["ok", "too_long", "failed", "ok"]
        assert [result["score"] for result in answer["results"][1:3]] == [None, None]
        assert answer["results"][1]["detail"].startswith('part "harmless": ')
        (raw,) = score(service, items=items[:1], model="safe", raw=True).json()["results"]
        assert (raw["score"], raw["heads"]) == (3.0, {"helpful": 3.0, "harmless": 1.5})
        (careful,) = score(service, items=items[:1], model="careful").json()["results"]
        assert careful["score"] == 0.25
        pinned = {"fingerprint": answer["fingerprint"], "engine": "onnxruntime-cpu-fp32"}
        assert score(service, items=items, model="safe", **pinned).status_code == 200
        wrong = load_bundle(helpful).fingerprint
        assert score(service, items=items, model="safe", fingerprint=wrong).status_code == 409
        assert score(service, items=items, model="safe", engine="openvino").status_code == 409
        info = {model["name"]: model for model in httpx2.get(f"{service.url}/info").json()["models"]}
        assert list(info) == ["helpful", "harmless", "safe", "careful"]
        assert info["safe"]["fingerprint"] == answer["fingerprint"]
        assert info["safe"]["parts"] == {name: info[name]["fingerprint"] for name in ("helpful", "harmless")}
        assert info["safe"]["formula"] == "0.75*helpful+0.5*harmless"
        metrics = httpx2.get(f"{service.url}/metrics").text
        assert 'plaudit_sequences_total{model="safe",status="too_long"} 2.0' in metrics
        assert 'plaudit_score_count{model="careful"} 1.0' in metrics
        assert 'plaudit_score_mean{model="careful"} 0.25' in metrics
        assert f'fingerprint="{answer["fingerprint"]}",model="safe",precision="fp32"' in metrics
        assert score(service, items=items).status_code == 422


def test_a_combination_of_unknown_parts_or_of_a_taken_name_ends_in_exit_code_2(tiny_bundle):
    bundle = tiny_bundle(name="a")
    for formula, expected in (("x=a+b", 'part "b" is not a loaded bundle'), ("a=2*a", 'the name "a" is taken')):
        command = [str(Path(sys.executable).with_name("plaudit-serve")), str(bundle), "--port", "0"]
        done = subprocess.run([*command, "--combine", formula], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert expected in done.stderr
