import torch

from plaudit_demo.data.corpus import make_corpus, make_prompts
from plaudit_demo.training.models import make_causal_lm, train_policy_tokenizer, train_reward_model_tokenizer

TEXTS = [example.prompt + example.completion for example in make_corpus(make_prompts(), 200, seed=1)]


def test_the_policy_tokenizer_gives_back_every_text():
    tokenizer = train_policy_tokenizer(TEXTS, 400)
    for text in [*TEXTS[:20], "Grüße 👍"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_pad_is_not_eos_in_either_tokenizer_and_neither_adds_tokens():
    for tokenizer in (train_policy_tokenizer(TEXTS, 400), train_reward_model_tokenizer(TEXTS)):
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
        assert tokenizer("")["input_ids"] == []


def test_the_reward_model_has_another_tokenizer_with_one_token_per_word():
    tokenizer = train_reward_model_tokenizer(TEXTS)
    assert tokenizer.tokenize("The bar was clean.<eos>") == ["the", "bar", "was", "clean", ".", "<eos>"]


def test_a_seed_decides_the_weights():
    tokenizer = train_policy_tokenizer(TEXTS, 300)
    sizes = {"hidden_size": 16, "num_layers": 1, "max_tokens": 32}
    one, same, other = (make_causal_lm(tokenizer, **sizes, seed=seed).state_dict() for seed in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
