import copy
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.distributed.learner import Learner
from plaudit_ppo.errors import DivergenceError, RatioError
from plaudit_ppo.rollout.forward import completion_logits, completion_values, token_logprobs
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.sampling import sample_rollouts
from plaudit_ppo.training.experience import make_experience
from plaudit_ppo.training.update import check_sampled_ratio, run_update

SMALL = {"epochs": 1, "temperature": 1.0, "micro_batch_size": 3}
PROMPTS = [[2, 3], [4], [5, 6, 7], [8, 9], [10], [11, 12, 13, 14]]


@pytest.fixture
def make_learner(policy, critic):
    def make(learning_rate=0.5, max_grad_norm=0.0):
        """Plain gradient descent: the change of the weights is the gradient, which Adam would hide."""
        models = copy.deepcopy(policy), copy.deepcopy(critic)
        optimizers = tuple(torch.optim.SGD(model.parameters(), lr=learning_rate) for model in models)
        return Learner(*models, optimizers, Accelerator(), max_grad_norm)

    return make


@pytest.fixture
def rollouts(policy):
    return sample_rollouts(
        policy,
        *pad_left(PROMPTS, 1),
        max_tokens=12,
        temperature=1.0,
        eos_ids=[0],
        pad_id=1,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.fixture
def make(policy, make_policy, critic):
    """The experience of some rollouts, with another model as the reference so that there is a KL penalty."""

    @torch.no_grad()
    def make(rollouts, scores, **settings):
        return make_experience(
            rollouts,
            torch.tensor(scores),
            logprobs=token_logprobs(completion_logits(policy, rollouts, temperature=1.0), rollouts),
            ref_logprobs=token_logprobs(completion_logits(make_policy(7), rollouts, temperature=1.0), rollouts),
            values=completion_values(critic, rollouts),
            kl_coef=0.05,
            config=PPOConfig(**SMALL | settings),
        )

    return make


def off_sampler(rollouts):
    """The rollouts, with logprobs of a sampler that is another model, too low in every other row."""
    noise = torch.rand(rollouts.sampled_logprobs.shape, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    noise += torch.tensor([-0.3, 0.3] * 3)[:, None]
    return replace(rollouts, sampled_logprobs=rollouts.sampled_logprobs + noise)


SCORES = [1.0, -2.0, 0.5, 3.0, 0.0, -1.0]


def update(learner, experience, seed=0, **settings):
    """Runs an update and returns its metrics and all weights after it."""
    generator = torch.Generator().manual_seed(seed)
    metrics = run_update(learner, experience, PPOConfig(**SMALL | settings), generator=generator)
    weights = [*learner.policy.parameters(), *learner.critic.parameters()]
    return metrics, torch.cat([weight.detach().flatten() for weight in weights])


CORRECTIONS = ["none", "token_truncate", "sequence_mask"]


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("num_minibatches", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_splitting_into_micro_batches_changes_nothing(make_learner, make, rollouts, size, num_minibatches, correction):
    """Details 18 and 29: the denominator is the number of real tokens of the whole minibatch."""
    experience = make(off_sampler(rollouts), SCORES, sampling_correction=correction)
    assert len(set(experience.mask.sum(1).tolist())) > 2  # lengths differ, so a mean of means would be another number
    metrics, weights = update(make_learner(), experience, num_minibatches=num_minibatches, micro_batch_size=6)
    split_metrics, split_weights = update(
        make_learner(), experience, num_minibatches=num_minibatches, micro_batch_size=size
    )
    assert torch.allclose(weights, split_weights, atol=1e-5)
    assert split_metrics == pytest.approx(metrics, abs=1e-5)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("whiten_advantages", ["batch", "minibatch"])
def test_failed_rollouts_change_nothing(make_learner, make, rollouts, whiten_advantages, correction):
    """Details 10 and 29: a rollout without a score is out of every loss and statistic, as if it were not there."""
    scores = [1.0, math.nan, 0.5, math.nan, 0.0, -1.0]
    kept = torch.tensor([0, 2, 4, 5])
    settings = {"whiten_advantages": whiten_advantages, "sampling_correction": correction}
    rollouts = off_sampler(rollouts)
    with_failures = update(make_learner(), make(rollouts, scores, **settings), **settings)
    without = make(rollouts.select(kept), [scores[row] for row in kept], **settings)
    metrics, weights = update(make_learner(), without, **settings)
    assert torch.allclose(with_failures[1], weights, atol=1e-5)
    assert with_failures[0] == pytest.approx(metrics, abs=1e-5)


def test_the_loss_and_its_gradient_are_those_of_a_slow_loop_over_tokens(make_learner, make, rollouts):
    """Detail 18: policy and value loss, coefficient 0.1, one mean over all real tokens."""
    experience, learner = make(rollouts, SCORES), make_learner()
    expected = copy.deepcopy((learner.policy, learner.critic))
    total, count = torch.zeros(()), 0
    for row in range(6):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        completion = rollouts.completion_ids[row][rollouts.completion_mask[row]]
        ids = torch.cat([prompt, completion])[None]
        positions, ones = torch.arange(ids.shape[1])[None], torch.ones_like(ids)
        logprobs = expected[0](ids).logits[0].div(1 + 1e-7).log_softmax(1)
        values = expected[1](input_ids=ids, attention_mask=ones, position_ids=positions)[0]
        for t, token in enumerate(completion.tolist()):
            at = len(prompt) + t - 1
            ratio = (logprobs[at, token] - experience.old_logprobs[row, t]).exp()
            advantage = experience.advantages[row, t]
            policy_loss = max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
            total = total + policy_loss + 0.1 * 0.5 * (values[at] - experience.returns[row, t]) ** 2
            count += 1
    (total / count).backward()
    slow = [p.detach() - 0.5 * p.grad for model in expected for p in model.parameters()]
    _, weights = update(learner, experience)
    assert torch.allclose(weights, torch.cat([weight.flatten() for weight in slow]), atol=1e-5)


@pytest.mark.parametrize("correction", CORRECTIONS[1:])
def test_the_policy_loss_of_a_token_is_multiplied_by_its_weight(make_learner, make, rollouts, correction):
    """Detail 29: in a slow loop, by the definition of either weight; the value loss and the denominator stay."""
    rollouts = off_sampler(rollouts)
    experience, learner = make(rollouts, SCORES, sampling_correction=correction), make_learner()
    policy, total, values, cut = copy.deepcopy(learner.policy), torch.zeros(()), 0.0, 0
    for row in range(6):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        completion = rollouts.completion_ids[row][rollouts.completion_mask[row]]
        logprobs = policy(torch.cat([prompt, completion])[None]).logits[0].log_softmax(1)
        steps = list(enumerate(completion.tolist()))
        current = [logprobs[len(prompt) + t - 1, token] for t, token in steps]
        ratios = [math.exp(current[t].item() - rollouts.sampled_logprobs[row, t].item()) for t, _ in steps]
        for t, _ in steps:
            weight = ratios[t] if correction == "token_truncate" else math.prod(ratios)
            cut += weight > 2
            weight = min(weight, 2.0) if correction == "token_truncate" else weight * (weight <= 2)
            surrogate = (current[t] - experience.old_logprobs[row, t]).exp()  # before the first step nothing is clipped
            total = total - weight * surrogate * experience.advantages[row, t]
            values += 0.5 * (experience.old_values[row, t] - experience.returns[row, t]).item() ** 2
    count = int(experience.mask.sum())
    assert 0 < cut < count
    (total / count).backward()
    slow = torch.cat([(p.detach() - 0.5 * p.grad).flatten() for p in policy.parameters()])
    metrics, weights = update(learner, experience)
    assert torch.allclose(weights[: len(slow)], slow, atol=1e-5)
    assert metrics["loss/policy_avg"] == pytest.approx(total.item() / count, abs=1e-5)
    assert metrics["loss/value_avg"] == pytest.approx(values / count, abs=1e-5)


@pytest.mark.parametrize("correction", CORRECTIONS[1:])
def test_with_a_sampler_that_gives_the_same_logprobs_a_correction_changes_no_bit(
    make_learner, make, rollouts, correction
):
    """Detail 29."""
    rollouts = replace(rollouts, sampled_logprobs=make(rollouts, SCORES).old_logprobs)
    settings = {"epochs": 2, "num_minibatches": 2}
    plain = update(make_learner(), make(rollouts, SCORES), **settings)
    corrected = update(make_learner(), make(rollouts, SCORES, sampling_correction=correction), **settings)
    assert torch.equal(corrected[1], plain[1])
    assert corrected[0] == plain[0]


def test_before_the_first_step_the_ratio_is_1(make_learner, make, rollouts):
    """Detail 23: one epoch of one minibatch sees only the policy that sampled."""
    metrics, _ = update(make_learner(), make(rollouts, SCORES))
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-8)
    assert metrics["policy/clipfrac_avg"] == metrics["val/clipfrac_avg"] == 0.0


def test_another_policy_than_the_one_that_sampled_is_noticed_before_a_step(make_learner, make, rollouts):
    """Detail 23: |ratio - 1| above 1e-4 stops the run, and no weight was changed."""
    experience, learner = make(rollouts, SCORES), make_learner()
    before = learner.policy.lm_head.weight.clone()
    shifted = replace(experience, old_logprobs=experience.old_logprobs - 2e-4)
    with pytest.raises(
        RatioError, match=r"differs from 1 by 2\.\d\de-04, limit 1\.00e-04 \(ratio_tolerance\)"
    ) as caught:
        update(learner, shifted)
    for cause in ("dropout", "temperature", "padding", "dtype"):
        assert cause in str(caught.value)
    assert torch.equal(learner.policy.lm_head.weight, before)
    update(learner, shifted, ratio_tolerance=1e-3)


@pytest.mark.parametrize("cause", ["dropout", "temperature"])
def test_dropout_and_a_wrong_temperature_are_noticed(make_learner, make, rollouts, cause):
    """Detail 23."""
    learner, settings = make_learner(), {}
    if cause == "dropout":
        learner.policy.model.norm.register_forward_hook(lambda *parts: torch.nn.functional.dropout(parts[2], 0.1))
    else:
        settings = {"temperature": 0.9}
    with pytest.raises(RatioError):
        update(learner, make(rollouts, SCORES), **settings)


def test_a_ratio_that_is_nan_is_noticed(make_learner, make, rollouts):
    """Detail 23."""
    experience = make(rollouts, SCORES)
    with pytest.raises(RatioError):
        update(make_learner(), replace(experience, old_logprobs=experience.old_logprobs * math.nan))


def test_a_loss_that_is_not_finite_makes_no_step(make_learner, make, rollouts):
    learner, experience = make_learner(), make(rollouts, SCORES)
    before = learner.policy.lm_head.weight.clone()
    for name, fields in {
        "policy": {"advantages": experience.advantages * math.nan},
        "value": {"returns": experience.returns * math.inf},
        "kl": {"ref_logprobs": experience.ref_logprobs * math.nan},
    }.items():
        with pytest.raises(DivergenceError, match=f"the {name} loss is (nan|inf), and no step was made; look in log"):
            update(learner, replace(experience, **fields))
    assert torch.equal(learner.policy.lm_head.weight, before)


@pytest.mark.parametrize("name", ["policy", "critic"])
def test_a_gradient_that_is_not_finite_makes_no_step(make_learner, make, rollouts, name):
    learner = make_learner()
    next(getattr(learner, name).parameters()).register_hook(lambda gradient: gradient * math.nan)
    before = learner.policy.lm_head.weight.clone()
    with pytest.raises(DivergenceError, match=f"the gradient of the {name} is not finite, and it made no step"):
        update(learner, make(rollouts, SCORES))
    assert torch.equal(learner.policy.lm_head.weight, before)


def test_the_kl_loss_is_k2_to_the_reference_and_off_by_default(make_learner, make, rollouts):
    """Detail 12: with it alone, the gradient is that of mean(k2) over the real tokens, in a slow loop."""
    experience, learner = make(rollouts, SCORES), make_learner()
    experience = replace(experience, advantages=experience.advantages * 0)
    policy, total, count = copy.deepcopy(learner.policy), torch.zeros(()), 0
    for row in range(6):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        completion = rollouts.completion_ids[row][rollouts.completion_mask[row]]
        logprobs = policy(torch.cat([prompt, completion])[None]).logits[0].log_softmax(1)
        for t, token in enumerate(completion.tolist()):
            total = total + 0.5 * (logprobs[len(prompt) + t - 1, token] - experience.ref_logprobs[row, t]) ** 2
            count += 1
    (0.3 * total / count).backward()
    slow = torch.cat([(p.detach() - 0.5 * p.grad).flatten() for p in policy.parameters()])
    _, without = update(make_learner(), experience, value_coef=0)
    metrics, weights = update(learner, experience, value_coef=0, kl_loss_coef=0.3)
    assert torch.allclose(weights[: len(slow)], slow, atol=1e-5)
    assert not torch.allclose(without[: len(slow)], slow, atol=1e-4)
    assert metrics["loss/kl_avg"] == pytest.approx(total.item() / count, abs=1e-5)


def test_the_entropy_bonus_is_the_mean_entropy_and_off_by_default(make_learner, make, rollouts):
    """Detail 32: with it alone, the gradient is that of -0.3 * mean(entropy) over the real tokens, in a slow loop."""
    experience, learner = make(rollouts, SCORES), make_learner()
    experience = replace(experience, advantages=experience.advantages * 0)
    policy, total, count = copy.deepcopy(learner.policy), torch.zeros(()), 0
    for row in range(6):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        completion = rollouts.completion_ids[row][rollouts.completion_mask[row]]
        logprobs = policy(torch.cat([prompt, completion])[None]).logits[0].log_softmax(1)
        for t in range(len(completion)):
            at = logprobs[len(prompt) + t - 1]
            total = total - (at.exp() * at).sum()
            count += 1
    (-0.3 * total / count).backward()
    slow = torch.cat([(p.detach() - 0.5 * p.grad).flatten() for p in policy.parameters()])
    _, without = update(make_learner(), experience, value_coef=0)
    metrics, weights = update(learner, experience, value_coef=0, entropy_coef=0.3)
    assert torch.allclose(weights[: len(slow)], slow, atol=1e-5)
    assert not torch.allclose(without[: len(slow)], slow, atol=1e-4)
    assert metrics["policy/entropy_avg"] == pytest.approx(total.item() / count, abs=1e-5)


def test_all_that_is_off_by_default_changes_nothing_where_it_is_at_its_neutral_value(make_learner, make, rollouts):
    """Details 29 to 33: the same bits with each formula in the way and nothing for it to do."""
    settings = {"epochs": 2, "num_minibatches": 2}
    neutral = {"clip_range_high": 0.2, "dual_clip": 1e6, "overlong_buffer_tokens": 1, "max_completion_tokens": 100}
    plain = update(make_learner(), make(rollouts, SCORES), **settings)
    other = update(make_learner(), make(rollouts, SCORES, **neutral), **settings, **neutral)
    assert torch.equal(plain[1], other[1])
    assert plain[0] == other[0]


def test_the_policy_and_its_optimizer_stay_as_they_are_where_the_critic_is_trained_alone(make_learner, make, rollouts):
    """Detail 34: the critic takes the very steps that it takes beside the policy."""
    settings, results = {"epochs": 2, "num_minibatches": 2, "entropy_coef": 0.1, "kl_loss_coef": 0.1}, {}
    for critic_alone in (False, True):
        learner, steps = make_learner(), []
        before = copy.deepcopy(learner.policy.state_dict())
        learner.optimizers[0].register_step_post_hook(lambda *_, steps=steps: steps.append(1))
        generator = torch.Generator().manual_seed(0)
        config = PPOConfig(**SMALL | settings)
        metrics = run_update(learner, make(rollouts, SCORES), config, generator=generator, critic_alone=critic_alone)
        moved = any(not torch.equal(before[name], weight) for name, weight in learner.policy.state_dict().items())
        results[critic_alone] = moved, len(steps), [p.detach().clone() for p in learner.critic.parameters()]
    assert results[False][:2] == (True, 4)
    assert results[True][:2] == (False, 0)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-8)
    for one, other in zip(results[False][2], results[True][2], strict=True):
        assert torch.equal(one, other)


def test_every_epoch_visits_every_rollout_once_in_a_new_order(make_learner, make, rollouts):
    """Detail 20: minibatches are reshuffled in each epoch."""
    learner, seen = make_learner(learning_rate=0.0), []
    first_tokens = {tuple(PROMPTS[row]): row for row in range(6)}

    def note(module, args, kwargs):
        ids, mask = kwargs["input_ids"][0], kwargs["attention_mask"][0].bool()
        text = ids[mask].tolist()
        seen.append(next(row for prompt, row in first_tokens.items() if tuple(text[: len(prompt)]) == prompt))

    learner.policy.register_forward_pre_hook(note, with_kwargs=True)
    update(learner, make(rollouts, SCORES), epochs=4, num_minibatches=6, micro_batch_size=1)
    epochs = [seen[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_number_of_steps_is_epochs_times_minibatches(make_learner, make, rollouts):
    """Detail 20: 4 epochs by default."""
    learner, steps = make_learner(), []
    learner.optimizers[0].register_step_post_hook(lambda *_: steps.append(1))
    update(learner, make(rollouts, SCORES), epochs=PPOConfig().epochs, num_minibatches=3)
    assert len(steps) == 12


def test_the_gradient_of_each_network_is_clipped_on_its_own(make_learner, make, rollouts):
    """Detail 21: the clip is a setting."""
    learner, experience = make_learner(learning_rate=1.0, max_grad_norm=1e-3), make(rollouts, SCORES)
    before = copy.deepcopy((learner.policy, learner.critic))
    update(learner, experience)
    for old, new in zip(before, (learner.policy, learner.critic), strict=True):
        change = [a.detach() - b.detach() for a, b in zip(old.parameters(), new.parameters(), strict=True)]
        assert torch.cat([c.flatten() for c in change]).norm().item() == pytest.approx(1e-3, rel=0.05)


def test_rollouts_of_an_earlier_version_are_judged_against_that_version_alone(
    make_learner, make, rollouts, make_policy
):
    config, experience = PPOConfig(**SMALL), make(rollouts, SCORES)
    learner = make_learner()
    check_sampled_ratio(learner, experience, config)
    learner.policy.load_state_dict(make_policy(7).state_dict())
    with pytest.raises(RatioError, match="not the one that sampled"):
        check_sampled_ratio(learner, experience, config)
    with pytest.raises(RatioError, match="not the one that sampled"):
        update(learner, experience)
    metrics = run_update(learner, experience, config, generator=torch.Generator(), is_stale=True)
    assert metrics["val/ratio"] != pytest.approx(1, abs=1e-2)
