import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit_ppo.algorithm.advantages import compute_gae, whiten


def slow_gae(rewards, values, length, gamma, gae_lambda):
    """The definition, as a double sum over the real tokens of one completion."""
    padded = [*values[:length], 0.0]
    errors = [rewards[t] + gamma * padded[t + 1] - padded[t] for t in range(length)]
    return [sum((gamma * gae_lambda) ** (u - t) * errors[u] for u in range(t, length)) for t in range(length)]


def test_advantages_of_a_completion_with_eos_and_of_a_cut_one_by_hand():
    """Details 11 and 15: gamma 1, lambda 0.95, the value after the last kept token is 0, for both endings.

    Row 0 ends at t = 1 (EOS): d = [1 + 0.5 - 2, 3 - 0.5] = [-0.5, 2.5]; A = [-0.5 + 0.95 * 2.5, 2.5].
    Row 1 is cut at t = 2: d = [0 + 1 - 1, 0 + 1 - 1, 5 - 1] = [0, 0, 4]; A = [0.95^2 * 4, 0.95 * 4, 4].
    """
    rewards = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 5.0]])
    values = torch.tensor([[2.0, 0.5, 0.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    advantages = compute_gae(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    assert advantages[0].tolist() == pytest.approx([1.875, 2.5, 0.0])
    assert advantages[1].tolist() == pytest.approx([3.61, 3.8, 4.0])


@given(st.data())
def test_advantages_are_those_of_the_definition(data):
    """Detail 15, against a slow double sum."""
    T = data.draw(st.integers(1, 6))
    numbers = st.lists(st.floats(-3, 3, width=32), min_size=T, max_size=T)
    rewards, values = data.draw(numbers), data.draw(numbers)
    length = data.draw(st.integers(0, T))
    gamma, gae_lambda = data.draw(st.sampled_from([0.5, 0.9, 1.0])), data.draw(st.sampled_from([0.0, 0.95, 1.0]))
    mask = torch.arange(T)[None] < length
    fast = compute_gae(torch.tensor([rewards]), torch.tensor([values]), mask, gamma=gamma, gae_lambda=gae_lambda)
    expected = slow_gae(rewards, values, length, gamma, gae_lambda) + [0.0] * (T - length)
    assert fast[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\), \(1, 3\), \(1, 2\)"):
        compute_gae(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2, dtype=torch.bool), gamma=1, gae_lambda=1)


def test_whitening_uses_the_biased_variance_of_the_real_tokens():
    """Detail 16: mean shift, biased variance, rsqrt(var + 1e-8): mean 2, variance (1 + 1) / 2 = 1."""
    whitened = whiten(torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([[True, True, False]]))
    assert whitened.tolist() == [[pytest.approx(-1.0), pytest.approx(1.0), 0.0]]


def test_whitening_without_a_shift_keeps_the_mean():
    """Detail 14: (x - 2) / 1 + 2 for mean 2 and variance 1; then with variance 4."""
    ones = torch.ones(1, 2, dtype=torch.bool)
    assert whiten(torch.tensor([[1.0, 3.0]]), ones, shift_mean=False).tolist() == [pytest.approx([1.0, 3.0])]
    assert whiten(torch.tensor([[0.0, 4.0]]), ones, shift_mean=False).tolist() == [pytest.approx([1.0, 3.0])]


def test_whitening_a_constant_gives_0():
    """Detail 16: 1e-8 keeps the division finite."""
    assert whiten(torch.full((1, 3), 7.0), torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0, 0.0]]


def test_whitening_is_over_all_processes():
    """Detail 16: with sums over two processes, each gets the numbers of the whole batch."""
    ones = torch.ones(1, 2, dtype=torch.bool)
    parts = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 8.0]])
    whole = whiten(torch.cat(parts), torch.cat([ones, ones]))
    totals = iter([torch.tensor(4), torch.tensor(16.0), torch.tensor(30.0)])  # count, sum, sum of squared distances
    assert torch.allclose(whiten(parts[0], ones, total=lambda _: next(totals)), whole[:1])
