import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plaudit_ppo.errors import ConfigError
from plaudit_ppo.forward import completion_logits, token_logprobs
from plaudit_ppo.metrics import sampling_ratio_error
from plaudit_ppo.prompts import pad_left
from plaudit_ppo.rollouts import Rollouts, completion_texts, concatenate, pad_token_id, sample_rollouts

EOS, PAD = 0, 1


def sample(policy, prompts, *, seed=0, max_tokens=8, temperature=1.0, pad_id=PAD, eos_ids=(EOS,)):
    return sample_rollouts(
        policy,
        *pad_left(prompts, pad_id),
        max_tokens=max_tokens,
        temperature=temperature,
        eos_ids=eos_ids,
        pad_id=pad_id,
        generator=torch.Generator().manual_seed(seed),
    )


def rollout(prompt, completion, *, finished):
    ids = torch.tensor([completion])
    return Rollouts(
        prompt_ids=torch.tensor([prompt]),
        prompt_mask=torch.ones(1, len(prompt), dtype=torch.bool),
        completion_ids=ids,
        completion_mask=torch.ones_like(ids, dtype=torch.bool),
        finished=torch.tensor([finished]),
        sampled_logprobs=torch.zeros(ids.shape),
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


def test_batches_are_joined_with_prompts_left_and_completions_right():
    """Detail 1: prompts padded left, completions right."""
    joined = concatenate([rollout([2], [3, 0], finished=True), rollout([4, 5], [6], finished=False)], PAD)
    assert joined.prompt_ids.tolist() == [[PAD, 2], [4, 5]]
    assert joined.prompt_mask.tolist() == [[False, True], [True, True]]
    assert joined.completion_ids.tolist() == [[3, 0], [6, PAD]]
    assert joined.completion_mask.tolist() == [[True, True], [True, False]]
    assert joined.finished.tolist() == [True, False]


def test_selected_rows_lose_the_padding_that_they_share():
    joined = concatenate([rollout([2], [3, 0], finished=True), rollout([4, 5], [6, 7, 8], finished=False)], PAD)
    assert joined.select(torch.tensor([0])).completion_ids.tolist() == [[3, 0]]
    assert joined.select(torch.tensor([0])).prompt_ids.tolist() == [[2]]
    assert joined.select(torch.tensor([1, 0])).completion_ids.tolist() == [[6, 7, 8], [3, 0, PAD]]


def test_pad_is_never_eos(make_tokenizer):
    """Detail 2: a tokenizer without a usable pad token is refused, or gets an id of its own."""
    usable = make_tokenizer(eos_token="<eos>", pad_token="<pad>")
    assert pad_token_id(usable, "refuse") == PAD
    for tokenizer in (make_tokenizer(eos_token="<eos>"), make_tokenizer(eos_token="<eos>", pad_token="<eos>")):
        assert pad_token_id(tokenizer, "add") == 32  # no token has it
        assert len(tokenizer) == 32  # and the tokenizer stays as it was
        with pytest.raises(ConfigError, match="would hide EOS from the loss"):
            pad_token_id(tokenizer, "refuse")
    with pytest.raises(ConfigError, match="no EOS token"):
        pad_token_id(make_tokenizer(), "add")


def test_a_pad_id_outside_of_the_vocabulary_never_reaches_the_model(policy):
    """Details 1 and 2: masked ids are replaced by 0 before every forward."""
    inside, outside = (sample(policy, [[2], [4, 5, 6]] * 5, pad_id=pad_id) for pad_id in (PAD, 10**6))
    assert torch.equal(inside.completion_mask, outside.completion_mask)
    logits = [completion_logits(policy, rollouts, temperature=1.0) for rollouts in (inside, outside)]
    assert torch.equal(*logits)
    assert torch.equal(token_logprobs(logits[0], inside), token_logprobs(logits[1], outside))


def test_the_text_of_a_completion_has_its_eos_only_on_demand(tokenizer):
    """Detail 6: text, and EOS only where it is wanted."""
    finished = rollout([2, 3], [4, 5, EOS], finished=True)
    cut = rollout([2, 3], [4, 5], finished=False)
    for with_eos, ending in ((False, ""), (True, " <eos>")):
        assert completion_texts(finished, tokenizer, with_eos=[with_eos]) == [" w4 w5" + ending]
        assert completion_texts(cut, tokenizer, with_eos=[with_eos]) == [" w4 w5"]


def test_the_space_between_prompt_and_completion_survives(tokenizer):
    """Detail 6: a tokenizer that drops the first space of a text does not glue prompt and completion together."""
    core = Tokenizer(models.BPE({"▁a": 0, "▁b": 1, "</s>": 2, "c": 3}, []))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    metaspace = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert metaspace.decode([1]) == "b"
    assert completion_texts(rollout([0], [1, 3, 2], finished=True), metaspace, with_eos=[False, False]) == [" bc"]
    assert completion_texts(rollout([0], [3, 1], finished=False), metaspace, with_eos=[False, False]) == ["c b"]


def test_padding_is_no_part_of_the_text(tokenizer):
    joined = concatenate([rollout([2], [3, EOS], finished=True), rollout([4, 5], [6, 7, 8], finished=False)], PAD)
    assert completion_texts(joined, tokenizer, with_eos=[False, False]) == [" w3", " w6 w7 w8"]
