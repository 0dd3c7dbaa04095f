import torch

from plaudit_ppo.rollout.seeding import seeded_generator

CPU = torch.device("cpu")


def numbers(*arguments):
    return torch.rand(4, generator=seeded_generator(CPU, *arguments)).tolist()


def test_a_generator_depends_on_its_arguments_alone():
    """Detail 22: so no random state is stored, and none has to be set again after the models are made."""
    first = numbers(1, "sampling", 3)
    torch.manual_seed(5)
    torch.rand(100)
    assert numbers(1, "sampling", 3) == first
    different = [
        numbers(2, "sampling", 3),
        numbers(1, "prompts", 3),
        numbers(1, "sampling", 4),
        numbers(1, "sampling", 33),
    ]
    assert all(other != first for other in different)
    assert len({tuple(other) for other in different}) == 4


def test_torchs_own_state_is_not_touched():
    """Detail 22."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    numbers(1, "sampling")
    assert torch.equal(torch.random.get_rng_state(), before)
