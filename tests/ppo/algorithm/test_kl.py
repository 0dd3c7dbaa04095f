import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit_ppo.algorithm.kl import kl_k1, kl_k2, kl_k3, next_kl_coef


def test_kl_is_the_difference_of_the_logprobs():
    """Details 11 and 12: k1."""
    assert kl_k1(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])).tolist() == [[0.5, -1.0]]


def test_k2_and_k3_by_hand():
    """Detail 12: k2 = 0.5^2 / 2 and 1 / 2; k3 = exp(-0.5) - 1 + 0.5 and exp(1) - 1 - 1."""
    k1 = torch.tensor([[0.5, -1.0, 0.0]])
    assert kl_k2(k1).tolist() == [[0.125, 0.5, 0.0]]
    assert kl_k3(k1)[0].tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.e - 2, 0.0])


@given(st.floats(-5, 5))
def test_k3_is_never_negative(k1):
    """Detail 12."""
    assert kl_k3(torch.tensor([k1], dtype=torch.float64)).item() >= 0


def test_all_three_estimate_the_divergence_and_k2_as_a_loss_has_its_gradient():
    """Detail 12: exact expectations over a small vocabulary; k2's mean is biased, its gradient is not."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    sampling = logprobs.detach().exp()  # the expectation is over samples, through which no gradient flows
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    k1 = kl_k1(logprobs, reference)
    for estimate in (k1, kl_k3(k1)):
        assert (sampling * estimate).sum().item() == pytest.approx(divergence.item())
    right = torch.autograd.grad(divergence, logits, retain_graph=True)[0]
    loss = {name: (sampling * values).sum() for name, values in (("k1", k1), ("k2", kl_k2(k1)), ("k3", kl_k3(k1)))}
    gradients = {name: torch.autograd.grad(value, logits, retain_graph=True)[0] for name, value in loss.items()}
    assert torch.allclose(gradients["k2"], right)
    assert not torch.allclose(gradients["k1"], right, atol=1e-2)
    assert not torch.allclose(gradients["k3"], right, atol=1e-3)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.2), (6.6, 0.2 * (1 + 0.1 * 64 / 10_000)), (60.0, 0.2 * (1 + 0.2 * 64 / 10_000)),
     (3.0, 0.2 * (1 - 0.2 * 64 / 10_000)), (-1.0, 0.2 * (1 - 0.2 * 64 / 10_000))],
)  # fmt: skip
def test_beta_follows_the_kl_by_at_most_a_fifth_of_the_share_of_the_horizon(kl, expected):
    """Detail 13: e = clip(KL / target - 1, ±0.2), beta *= 1 + e * n / horizon."""
    assert next_kl_coef(0.2, kl, target=6.0, horizon=10_000, num_rollouts=64) == pytest.approx(expected)
