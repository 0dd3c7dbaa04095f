import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit_ppo.algorithm.losses import masked_total, policy_losses, value_losses


def test_the_policy_loss_is_the_larger_of_the_clipped_and_the_unclipped_term():
    """Detail 18: max(-A r, -A clip(r, 1 ± 0.2)), by hand in all four corners."""
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]])
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0]])
    losses, clipped = policy_losses(ratio, advantages, clip_range=0.2)
    assert losses[0].tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6, -2.2])
    assert clipped[0].tolist() == [True, False, False, True, False]


def test_the_ratio_is_clipped_above_at_a_range_of_its_own():
    """Detail 30: max(-A r, -A clip(r, 0.8, 1.28)), by hand: 1.25 is inside, 1.5 is cut to 1.28, 0.5 to 0.8."""
    ratio = torch.tensor([[1.25, 1.5, 1.5, 0.5]])
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0]])
    losses, clipped = policy_losses(ratio, advantages, clip_range=0.2, clip_range_high=0.28)
    assert losses[0].tolist() == pytest.approx([-2.5, -2.56, 3.0, 1.6])
    assert clipped[0].tolist() == [False, True, False, True]


def test_a_dual_clip_bounds_the_loss_of_tokens_with_a_negative_advantage():
    """Detail 31: min(L, -3 A) where A < 0, by hand: L = 8 is cut to 6 and gets no gradient, L = 5 is not."""
    ratio = torch.tensor([[4.0, 2.5, 4.0, 0.5]], requires_grad=True)
    advantages = torch.tensor([[-2.0, -2.0, 2.0, -2.0]])
    losses, clipped = policy_losses(ratio, advantages, clip_range=0.2, dual_clip=3.0)
    assert losses[0].tolist() == pytest.approx([6.0, 5.0, -2.4, 1.6])
    assert clipped[0].tolist() == [True, False, True, True]
    losses.sum().backward()
    assert ratio.grad[0].tolist() == [0.0, 2.0, 0.0, 0.0]


def test_the_value_loss_is_half_the_larger_squared_error():
    """Detail 18: 0.5 max((v - R)^2, (clip(v, v_old ± 0.2) - R)^2).

    v = 1, v_old = 0, R = 1: clipped to 0.2, 0.5 * 0.8^2. v = 1, v_old = 0, R = 0: unclipped, 0.5 * 1.
    """
    values, old_values, returns = torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    losses, clipped = value_losses(values, old_values, returns, clip_range=0.2)
    assert losses[0].tolist() == pytest.approx([0.32, 0.5])
    assert clipped[0].tolist() == [True, False]


@given(st.floats(0.01, 3), st.floats(-3, 3))
def test_clipping_never_makes_the_policy_loss_smaller(ratio, advantage):
    """Detail 18: the surrogate is a lower bound."""
    losses, _ = policy_losses(torch.tensor([[ratio]]), torch.tensor([[advantage]]), clip_range=0.2)
    assert losses.item() >= -advantage * ratio - 1e-5


def test_padding_is_not_summed_and_gets_no_gradient():
    """Detail 18: only real tokens, even where padding holds nonsense."""
    losses = torch.tensor([[1.0, 2.0, float("inf")]], requires_grad=True)
    total = masked_total(losses, torch.tensor([[True, True, False]]))
    total.backward()
    assert total.item() == 3.0
    assert losses.grad.tolist() == [[1.0, 1.0, 0.0]]
