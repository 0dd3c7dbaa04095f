import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit_ppo.algorithm.correction import sampling_weights

# Row 0: ratios 1.5, 1.6, 0.25 of three real tokens, product 0.6. Row 1: ratios 1.5, 2.5, product 3.75, and padding.
RATIOS = torch.tensor([[1.5, 1.6, 0.25], [1.5, 2.5, 1e9]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
OLD = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -4.0, 1.0]])


def weights_of(correction, *, limit=2.0, ratios=RATIOS):
    return sampling_weights(OLD, OLD - ratios.log(), MASK, correction=correction, limit=limit)


def test_a_tokens_weight_is_its_ratio_cut_at_the_limit():
    """Detail 29, by hand: min(r, 2)."""
    weights, clipped = weights_of("token_truncate")
    assert weights.flatten().tolist() == pytest.approx([1.5, 1.6, 0.25, 1.5, 2.0, 1.0])
    assert clipped.tolist() == [[False, False, False], [False, True, False]]


def test_a_completions_weight_is_the_product_of_its_ratios_and_beyond_the_limit_it_is_masked():
    """Detail 29, by hand: 1.5 * 1.6 * 0.25 = 0.6 for every token of row 0; 1.5 * 2.5 = 3.75 > 2."""
    weights, clipped = weights_of("sequence_mask")
    assert weights.flatten().tolist() == pytest.approx([0.6, 0.6, 0.6, 0.0, 0.0, 1.0])
    assert clipped.tolist() == [[False, False, False], [True, True, False]]
    weights, clipped = weights_of("sequence_mask", limit=4.0)
    assert weights[1].tolist() == pytest.approx([3.75, 3.75, 1.0])
    assert not clipped.any()


def test_without_a_correction_every_weight_is_1():
    """Detail 29."""
    weights, clipped = weights_of("none")
    assert torch.equal(weights, torch.ones(2, 3))
    assert not clipped.any()


@pytest.mark.parametrize("correction", ["token_truncate", "sequence_mask"])
def test_a_ratio_that_is_infinite_or_no_number_counts_as_beyond_the_limit(correction):
    """Detail 29: so that the guard sees it."""
    for ratio in (math.inf, math.nan):
        _, clipped = weights_of(correction, ratios=torch.tensor([[1.0, 1.0, 1.0], [1.0, ratio, 1.0]]))
        assert clipped[1, 1]
        assert not clipped[0].any()


@given(
    st.lists(st.floats(-50, 0, width=32), min_size=6, max_size=6), st.sampled_from(["token_truncate", "sequence_mask"])
)
def test_a_sampler_with_the_same_logprobs_has_weights_of_exactly_1(logprobs, correction):
    """Detail 29: so no bit of a loss or gradient changes."""
    logprobs = torch.tensor(logprobs).reshape(2, 3)
    weights, clipped = sampling_weights(logprobs, logprobs, MASK, correction=correction, limit=1.0)
    assert torch.equal(weights, torch.ones(2, 3))
    assert not clipped.any()
