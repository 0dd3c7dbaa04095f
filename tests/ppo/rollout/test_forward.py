import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plaudit_ppo.rollout.forward import (
    PAD_LOGPROB,
    completion_logits,
    completion_values,
    entropy,
    model_inputs,
    position_ids,
    tempered,
    token_logprobs,
)
from plaudit_ppo.rollout.rollouts import Rollouts


@pytest.fixture
def rollouts():
    return Rollouts(
        prompt_ids=torch.tensor([[99, 99, 2], [3, 4, 5]]),
        prompt_mask=torch.tensor([[False, False, True], [True, True, True]]),
        completion_ids=torch.tensor([[6, 7, 0], [8, 99, 99]]),
        completion_mask=torch.tensor([[True, True, True], [True, False, False]]),
        finished=torch.tensor([True, False]),
        sampled_logprobs=torch.zeros(2, 3),
    )


def test_position_ids_are_the_exclusive_cumulative_sum_of_the_mask():
    """Detail 1."""
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_a_position_is_the_number_of_real_tokens_before_it(mask):
    """Detail 1."""
    assert position_ids(torch.tensor([mask]))[0].tolist() == [sum(mask[:t]) for t in range(len(mask))]


def test_masked_ids_are_replaced_by_0(rollouts):
    """Detail 1: attention mask from padding, masked ids 0."""
    inputs = model_inputs(rollouts)
    assert inputs["input_ids"].tolist() == [[0, 0, 2, 6, 7, 0], [3, 4, 5, 8, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert inputs["position_ids"].tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 4]]


def test_logits_are_divided_by_the_temperature_plus_1e_7():
    """Detail 4."""
    assert tempered(torch.tensor([2.0], dtype=torch.float64), 0.5).item() == pytest.approx(2.0 / (0.5 + 1e-7))
    assert tempered(torch.tensor([1.0]), 0.0).item() == pytest.approx(1e7)


def test_logits_stand_at_the_token_that_they_predict(policy, rollouts):
    """Detail 4: the training forward against transformers on each unpadded text."""
    logits = completion_logits(policy, rollouts, temperature=0.7)
    first = policy(torch.tensor([[2, 6, 7, 0]])).logits / (0.7 + 1e-7)
    second = policy(torch.tensor([[3, 4, 5, 8]])).logits / (0.7 + 1e-7)
    assert torch.allclose(logits[0], first[0, :3], atol=1e-5)
    assert torch.allclose(logits[1, 0], second[0, 2], atol=1e-5)


def test_logprobs_are_those_of_the_sampled_tokens_and_one_constant_on_padding(policy, rollouts):
    """Detail 17: padding filled with one constant."""
    logits = completion_logits(policy, rollouts, temperature=1.0)
    logprobs = token_logprobs(logits, rollouts)
    assert logprobs[0, 1].item() == pytest.approx(logits[0, 1].log_softmax(0)[7].item(), abs=1e-6)
    assert logprobs[1].tolist() == [
        pytest.approx(logits[1, 0].log_softmax(0)[8].item(), abs=1e-6),
        PAD_LOGPROB,
        PAD_LOGPROB,
    ]


def test_entropy_of_known_distributions():
    uniform, certain = torch.zeros(4), torch.tensor([100.0, 0.0, 0.0, 0.0])
    half = torch.tensor([0.0, 0.0, -100.0, -100.0])
    values = entropy(torch.stack([uniform, certain, half])[None])[0].tolist()
    assert values == pytest.approx([math.log(4), 0.0, math.log(2)], abs=1e-5)


def test_values_stand_before_the_token_that_they_judge_and_are_0_on_padding(critic, rollouts):
    """Details 11 and 17: V[t] is read one token earlier; V = 0 after the last kept token."""
    values = completion_values(critic, rollouts)
    ids = torch.tensor([[3, 4, 5, 8]])
    ones = torch.ones_like(ids)
    whole = critic(input_ids=ids, attention_mask=ones, position_ids=torch.arange(4)[None])
    assert values[1].tolist() == [pytest.approx(whole[0, 2].item(), abs=1e-5), 0.0, 0.0]


def test_no_number_is_nan_where_a_row_begins_with_padding(policy, critic, rollouts):
    assert completion_logits(policy, rollouts, temperature=1.0).isfinite().all()
    assert completion_values(critic, rollouts).isfinite().all()
