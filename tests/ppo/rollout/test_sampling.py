import pytest
import torch

from plaudit_ppo.errors import ConfigError
from plaudit_ppo.rollout.completion_text import StopStrings
from plaudit_ppo.rollout.forward import completion_logits, token_logprobs
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.sampling import pad_token_id, sample_rollouts
from plaudit_ppo.training.metrics import sampling_ratio_error

EOS, PAD = 0, 1


def sample(policy, prompts, *, seed=0, max_tokens=8, temperature=1.0, pad_id=PAD, eos_ids=(EOS,), stop=None):
    return sample_rollouts(
        policy,
        *pad_left(prompts, pad_id),
        max_tokens=max_tokens,
        temperature=temperature,
        eos_ids=eos_ids,
        pad_id=pad_id,
        generator=torch.Generator().manual_seed(seed),
        stop=stop,
    )


def test_a_completion_is_kept_through_the_first_eos_and_padded_after_it(policy):
    """Detail 3: sample up to a length, keep through the first EOS, pad after it."""
    rollouts = sample(policy, [[2, 3], [4], [5, 6, 7]] * 20)
    assert 0 < rollouts.finished.sum() < 60
    for ids, mask, finished in zip(
        rollouts.completion_ids.tolist(), rollouts.completion_mask.tolist(), rollouts.finished.tolist(), strict=True
    ):
        assert finished == (EOS in ids)
        length = ids.index(EOS) + 1 if finished else len(ids)
        assert mask == [True] * length + [False] * (len(ids) - length)
        assert ids[length:] == [PAD] * (len(ids) - length)


def test_a_completion_ends_with_the_token_that_brings_a_stop_string_to_its_end(policy, tokenizer):
    """Detail 36: it has ended as by EOS, and until then it is the one that is sampled without."""
    with torch.no_grad():
        policy.lm_head.weight.zero_()  # uniform
    prompts = [[2, 3], [4], [5, 6, 7]] * 40
    stop = StopStrings([" w9", " w4 w4"], tokenizer)
    free, stopped = sample(policy, prompts), sample(policy, prompts, stop=stop)
    lengths = []
    for row, prompt in enumerate(prompts):
        ids = free.completion_ids[row][free.completion_mask[row]].tolist()
        end = stop.find(prompt, ids)
        kept = stopped.completion_ids[row][stopped.completion_mask[row]].tolist()
        assert kept == ids[:end]
        assert bool(stopped.finished[row]) == (end is not None or bool(free.finished[row]))
        lengths.append(end)
    assert len(set(lengths)) > 4


def test_sampling_follows_the_tempered_distribution_without_top_k_or_top_p(policy):
    """Details 3 and 4: the whole distribution of logits / (temperature + 1e-7)."""
    rollouts = sample(policy, [[2, 3]] * 20_000, max_tokens=1, temperature=0.7)
    logits = policy(torch.tensor([[2, 3]])).logits[0, -1]
    expected = (logits / (0.7 + 1e-7)).softmax(0)
    observed = rollouts.completion_ids[:, 0].bincount(minlength=32) / 20_000
    assert (observed - expected).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    assert observed.gt(0).sum() > 20


def test_a_sampled_pad_token_is_a_token_like_any_other(policy):
    """Detail 2: masks follow from positions, not from ids."""
    with torch.no_grad():
        policy.lm_head.weight.zero_()  # uniform: pads are drawn too
    rollouts = sample(policy, [[2]] * 60)
    assert (rollouts.completion_ids[rollouts.completion_mask] == PAD).any()


def test_padding_changes_no_probability(policy):
    """Detail 1: the same prompt alone and beside a longer one."""
    both = sample(policy, [[2, 3], [4, 5, 6, 7, 8, 9]])
    logprobs = token_logprobs(completion_logits(policy, both, temperature=1.0), both)
    short = both.select(torch.tensor([0]))
    assert short.prompt_ids.tolist() == [[2, 3]]
    alone = token_logprobs(completion_logits(policy, short, temperature=1.0), short)
    assert torch.allclose(logprobs[:1, : alone.shape[1]], alone, atol=1e-5)


@torch.no_grad()
def test_the_training_forward_gives_the_probabilities_that_were_sampled_from(policy):
    """Detail 23: generating and training forward agree, and another temperature is noticed."""
    rollouts = sample(policy, [[2, 3], [4], [5, 6, 7]] * 4, temperature=0.7)
    for temperature, agrees in ((0.7, True), (1.0, False)):
        logprobs = token_logprobs(completion_logits(policy, rollouts, temperature=temperature), rollouts)
        error = sampling_ratio_error(rollouts.sampled_logprobs, logprobs, rollouts.completion_mask)
        assert error < 1e-4 if agrees else error > 1e-1


def test_the_same_generator_gives_the_same_rollouts(policy):
    prompts = [[2, 3], [4]] * 8
    first, second, other = (sample(policy, prompts, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert torch.equal(first.sampled_logprobs, second.sampled_logprobs)
    assert first.completion_ids.shape != other.completion_ids.shape or not torch.equal(
        first.completion_ids, other.completion_ids
    )


def test_sampling_stops_when_every_completion_has_ended(policy):
    with torch.no_grad():
        policy.lm_head.weight.zero_()
    rollouts = sample(policy, [[2]] * 4, max_tokens=2000)
    assert rollouts.finished.all()
    assert rollouts.completion_mask.any(0).all()


def test_pad_is_never_eos(make_tokenizer):
    """Detail 2: a tokenizer without a usable pad token is refused, or gets an id of its own."""
    usable = make_tokenizer(eos_token="<eos>", pad_token="<pad>")
    assert pad_token_id(usable, "refuse", [EOS]) == PAD
    assert pad_token_id(usable, "add", [EOS, PAD]) == 32  # as one of several that end a completion
    for tokenizer in (make_tokenizer(eos_token="<eos>"), make_tokenizer(eos_token="<eos>", pad_token="<eos>")):
        assert pad_token_id(tokenizer, "add", [EOS]) == 32  # no token has it
        assert len(tokenizer) == 32  # and the tokenizer stays as it was
        with pytest.raises(ConfigError, match="would hide EOS from the loss"):
            pad_token_id(tokenizer, "refuse", [EOS])


def test_a_pad_id_outside_of_the_vocabulary_never_reaches_the_model(policy):
    """Details 1 and 2: masked ids are replaced by 0 before every forward."""
    inside, outside = (sample(policy, [[2], [4, 5, 6]] * 5, pad_id=pad_id) for pad_id in (PAD, 10**6))
    assert torch.equal(inside.completion_mask, outside.completion_mask)
    logits = [completion_logits(policy, rollouts, temperature=1.0) for rollouts in (inside, outside)]
    assert torch.equal(*logits)
    assert torch.equal(token_logprobs(logits[0], inside), token_logprobs(logits[1], outside))
