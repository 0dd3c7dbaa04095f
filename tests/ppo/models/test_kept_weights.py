import pytest
import torch
from tiny_trainer import weights

from plaudit_ppo.models.kept_weights import KeptWeights


def change(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)


def test_a_network_is_as_it_was_kept_and_then_as_it_is_now_by_the_same_bits(policy):
    kept, before = KeptWeights(policy), weights(policy)
    kept.keep()
    change(policy)
    now = weights(policy)
    for _ in range(2):
        with kept.swapped_in():
            assert torch.equal(weights(policy), before)
        assert torch.equal(weights(policy), now)
    with pytest.raises(KeyError), kept.swapped_in():
        raise KeyError
    assert torch.equal(weights(policy), now)


def test_where_nothing_was_kept_a_network_stays_as_it_is(policy):
    kept, before = KeptWeights(policy), weights(policy)
    with kept.swapped_in():
        assert torch.equal(weights(policy), before)
    assert not kept.exist
