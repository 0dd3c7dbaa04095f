import pytest
import torch

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.learner_setup import make_optimizer
from plaudit_ppo.training.learning_rates import schedule, set_learning_rates


def rates(**settings):
    return [schedule(i, iterations=4, **{"warmup_iterations": 0, "lr_schedule": "linear"} | settings) for i in range(4)]


def test_the_linear_schedule_goes_from_the_full_rate_towards_0():
    """Detail 21."""
    assert rates() == [1.0, 0.75, 0.5, 0.25]


def test_the_constant_schedule_stays_after_its_warm_up():
    """Detail 21: I22's warm-up."""
    assert rates(lr_schedule="constant") == [1.0] * 4
    assert rates(lr_schedule="constant", warmup_iterations=2) == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_the_optimizer_is_adamw_with_the_large_epsilon_and_a_rate_for_each_network():
    """Detail 21: eps 1e-5."""
    policy, critic = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    optimizers = [make_optimizer(network, PPOConfig()) for network in (policy, critic)]

    def rates():
        return [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]

    for optimizer in optimizers:
        assert isinstance(optimizer, torch.optim.AdamW)
        assert [group["eps"] for group in optimizer.param_groups] == [1e-5]
    assert set_learning_rates(optimizers, PPOConfig(iterations=2), 1) == 1.5e-6
    assert rates() == [1.5e-6, 1.5e-6]
    set_learning_rates(optimizers, PPOConfig(critic_learning_rate=1e-4), 0)
    assert rates() == [3e-6, 1e-4]
