import math

import pytest

from plaudit_ppo.errors import ConstantScoresError, KLBudgetError, MaskedShareError, RatioError, RewardModelError
from plaudit_ppo.training import guards


def test_the_masked_share_may_reach_its_limit_and_not_exceed_it():
    """Detail 10."""
    guards.check_masked_share(0.25, limit=0.25, failure="failed")
    with pytest.raises(MaskedShareError, match=r"26% .* limit 25% \(max_masked_share\); first failure: no memory;"):
        guards.check_masked_share(0.26, limit=0.25, failure="no memory")


def test_iterations_are_constant_when_all_of_at_least_two_scores_are_one_number():
    assert guards.count_constant(3, 0.0, num_scores=2) == 4
    assert guards.count_constant(3, 1e-9, num_scores=2) == 0
    assert guards.count_constant(3, 0.0, num_scores=1) == 3  # one score tells nothing
    assert guards.count_constant(3, None, num_scores=0) == 3


def test_constant_scores_stop_the_run_after_so_many_iterations():
    guards.check_constant(4, limit=5)
    guards.check_constant(1000, limit=0)
    with pytest.raises(ConstantScoresError, match=r"5 iterations in a row, limit 5 \(max_constant_iterations\)"):
        guards.check_constant(5, limit=5)


def test_another_reward_model_is_noticed_and_one_that_tells_nothing_is_not():
    for fingerprint, known in (("a", "a"), (None, "a"), ("a", None)):
        guards.check_reward_model(fingerprint, known=known)
    with pytest.raises(RewardModelError, match="fingerprint b, before a"):
        guards.check_reward_model("b", known="a")


def test_a_kl_above_its_budget_stops_the_run():
    """Detail 24."""
    guards.check_kl(5.0, budget=5.0)
    guards.check_kl(500.0, budget=None)
    guards.check_kl(None, budget=5.0)
    with pytest.raises(KLBudgetError, match=r"objective/kl is 5\.5 nats per rollout, limit 5 \(kl_budget\)"):
        guards.check_kl(5.5, budget=5.0)


@pytest.mark.parametrize("check", [guards.check_sampling, guards.check_ratio])
@pytest.mark.parametrize("error", [2e-3, math.nan])
def test_a_ratio_off_by_more_than_its_tolerance_stops_the_run_also_when_it_is_nan(check, error):
    """Detail 23."""
    check(1e-3, tolerance=1e-3)
    with pytest.raises(RatioError, match=r"limit 1\.00e-03"):
        check(error, tolerance=1e-3)


def test_a_corrected_sampler_may_reach_each_limit_and_exceed_none():
    """Detail 29: also where a figure is NaN; without a score there is none."""
    figures = {"kl": 0.05, "clipped_share": 0.2, "log_ratio": 5.0}
    limits = {"max_kl": 0.05, "max_clipped_share": 0.2, "max_log_ratio": 5.0}
    guards.check_correction(**figures, **limits)
    guards.check_correction(kl=None, clipped_share=None, log_ratio=None, **limits)
    for name, says in {
        "kl": r"nats per token, is 0\.06, limit 0\.05 \(max_sampling_kl\)",
        "clipped_share": r"share of weights cut or masked is 0\.21, limit 0\.2 \(max_sampling_clipped_share\)",
        "log_ratio": r"difference of a logprob, in nats, is 5\.01, limit 5 \(max_sampling_log_ratio\)",
    }.items():
        with pytest.raises(RatioError, match=says):
            guards.check_correction(**figures | {name: figures[name] + 0.01}, **limits)
        with pytest.raises(RatioError, match="nan"):
            guards.check_correction(**figures | {name: math.nan}, **limits)
