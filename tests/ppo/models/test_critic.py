import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.models.critic import Critic, TrunkCritic, check_critic_tokens, init_head, load_critic


@pytest.fixture
def checkpoint(policy, tokenizer, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def generator():
    return torch.Generator().manual_seed(0)


def test_a_critic_from_a_policy_has_its_backbone_and_a_new_head(checkpoint, policy):
    """Detail 19: a separate network from the SFT model with a new scalar head."""
    critic = load_critic(checkpoint, head_init="normal", generator=generator())
    assert torch.equal(critic.model.model.embed_tokens.weight, policy.model.embed_tokens.weight)
    assert critic.model.model.embed_tokens.weight is not policy.model.embed_tokens.weight
    again = load_critic(checkpoint, head_init="normal", generator=generator())
    assert torch.equal(critic.model.score.weight, again.model.score.weight)
    zero = load_critic(checkpoint, head_init="zero", generator=generator())
    assert not zero.model.score.weight.any()


def test_a_new_normal_head_has_standard_deviation_1_over_sqrt_d_plus_1():
    """Details 7 and 19: std 1/sqrt(d + 1), bias 0."""
    head = torch.nn.Linear(9_999, 1)
    init_head(head, head_init="normal", generator=generator())
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.bias.item() == 0


def test_a_critic_from_a_reward_model_keeps_its_head(critic, tmp_path):
    """Detail 19: a separate network from the RM."""
    critic.save_pretrained(tmp_path / "rm")
    loaded = load_critic(tmp_path / "rm", head_init="normal", generator=generator())
    assert torch.equal(loaded.model.score.weight, critic.model.score.weight)


def test_a_critic_whose_config_names_code_of_its_own_is_refused_unless_the_built_in_class_is_right(critic, tmp_path):
    critic.model.config.auto_map = {"AutoModelForSequenceClassification": "own.LlamaForSequenceClassification"}
    critic.save_pretrained(tmp_path / "rm")
    with pytest.raises(
        CheckpointError, match=r"critic: .* names own\.LlamaForSequenceClassification for AutoModelForSequ"
    ):
        load_critic(tmp_path / "rm", head_init="normal", generator=generator())
    loaded = load_critic(tmp_path / "rm", head_init="normal", generator=generator(), builtin_class=True)
    assert torch.equal(loaded.model.score.weight, critic.model.score.weight)
    # What the trainer saved itself, it reads again.
    critic.restore(tmp_path / "rm")


def test_a_critic_with_another_tokenizer_than_the_policys_is_refused(
    checkpoint, critic, tokenizer, make_tokenizer, tmp_path
):
    """Detail 19: it reads the policy's ids; further tokens on either side are no matter."""
    check_critic_tokens(checkpoint, tokenizer)
    check_critic_tokens(tmp_path, tokenizer)
    more = make_tokenizer(eos_token="<eos>", pad_token="[PAD]")
    check_critic_tokens(checkpoint, more)
    swapped = Tokenizer(models.WordLevel({"w3": 4, "w4": 3}, unk_token="w3"))
    critic.save_pretrained(tmp_path / "rm")
    PreTrainedTokenizerFast(tokenizer_object=swapped).save_pretrained(tmp_path / "rm")
    with pytest.raises(CheckpointError, match=r"another tokenizer than the policy \(token 'w3' is 4, the policy's 3\)"):
        check_critic_tokens(tmp_path / "rm", tokenizer)


def test_a_head_on_the_policys_network_trains_it_too(policy, tmp_path):
    """Detail 19: the values are a linear function of the policy's hidden states, and their gradient reaches it."""
    critic = TrunkCritic(policy, head_init="normal", generator=generator())
    ids = torch.tensor([[3, 4, 5]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(3)[None]}
    values = critic(**inputs)
    hidden = policy(ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(values, (hidden @ critic.score.weight[0]) + critic.score.bias, atol=1e-6)
    values.sum().backward()
    assert policy.model.embed_tokens.weight.grad.any()
    assert [name for name, _ in critic.named_parameters()] == ["score.weight", "score.bias"]
    critic.save_pretrained(tmp_path / "critic")
    other = TrunkCritic(policy, head_init="zero", generator=generator())
    assert not other(**inputs).any()
    other.restore(tmp_path / "critic")
    assert torch.equal(other(**inputs), values)


def test_the_critic_gives_one_value_per_position(critic):
    ids = torch.tensor([[3, 4, 5]])
    values = critic(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(3)[None])
    assert values.shape == (1, 3)
    pooled = critic.model(input_ids=ids).logits  # transformers pools the last token
    assert values[0, 2].item() == pytest.approx(pooled.item(), abs=1e-6)


def test_a_critic_needs_a_scalar_head_over_a_causal_model():
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    with pytest.raises(CheckpointError, match="BertForSequenceClassification has no head `score` with one output"):
        Critic(BertForSequenceClassification(BertConfig(**tiny)))


def test_a_head_of_several_outputs_is_refused(critic):
    config = critic.model.config
    config.num_labels = 3
    with pytest.raises(CheckpointError, match="LlamaForSequenceClassification has no head"):
        Critic(LlamaForSequenceClassification(config))


def test_a_saved_critic_is_a_normal_transformers_directory(critic, tmp_path):
    critic.save_pretrained(tmp_path / "critic")
    assert (tmp_path / "critic" / "model.safetensors").is_file()
    assert LlamaForSequenceClassification.from_pretrained(tmp_path / "critic").num_labels == 1
