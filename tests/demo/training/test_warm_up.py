import torch

from plaudit_demo.data.corpus import Example
from plaudit_demo.data.sampling import sample_completions
from plaudit_demo.training.models import make_causal_lm, train_policy_tokenizer
from plaudit_demo.training.warm_up import warm_up

EXAMPLES = [Example("Say it:", " The bar was clean."), Example("Say more:", " The bed was clean. That is all.")]


def warmed_up(seed=3):
    tokenizer = train_policy_tokenizer([example.prompt + example.completion for example in EXAMPLES], 320)
    policy = make_causal_lm(tokenizer, hidden_size=32, num_layers=1, max_tokens=64, seed=1)
    losses = []
    warm_up(
        policy, tokenizer, EXAMPLES, num_steps=60, batch_size=2, learning_rate=1e-2, seed=seed, on_step=losses.append
    )
    return policy, tokenizer, losses


def test_the_policy_learns_to_complete_prompts_and_to_end():
    policy, tokenizer, losses = warmed_up()
    assert len(losses) == 60
    assert losses[-1] < 0.1 < 3 < losses[0]
    prompts = [example.prompt for example in EXAMPLES]
    completions = sample_completions(policy, tokenizer, prompts, max_tokens=40, temperature=0.1, seed=1)
    assert [completion.text for completion in completions] == [example.completion for example in EXAMPLES]
    assert all(completion.finished for completion in completions)


def test_a_completion_over_the_limit_is_cut_and_not_finished():
    policy, tokenizer, _ = warmed_up()
    (completion,) = sample_completions(policy, tokenizer, ["Say it:"], max_tokens=2, temperature=0.1, seed=1)
    assert not completion.finished
    assert completion.num_tokens == 2


def test_two_runs_give_the_same_weights_and_samples():
    results = []
    for _ in range(2):
        policy, tokenizer, _ = warmed_up()
        sampled = sample_completions(policy, tokenizer, ["Say it:"] * 5, max_tokens=20, temperature=1.0, seed=7)
        results.append((policy.state_dict(), sampled))
    (one, samples), (other, others) = results
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert samples == others
