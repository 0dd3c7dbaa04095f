import logging

import pytest
import torch

from plaudit_ppo import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.rollout.endings import eos_token_ids, no_ending

CHATML = (
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>{% endif %}"
)


@pytest.fixture
def chat_tokenizer(make_tokenizer):
    """Its template ends a turn with a token that is not its EOS."""
    tokenizer = make_tokenizer(eos_token="<eos>", pad_token="<pad>", additional_special_tokens=["<start>", "<end>"])
    tokenizer.chat_template = CHATML
    return tokenizer


def test_every_eos_of_tokenizer_and_generation_config_counts_once(policy, tokenizer, caplog):
    """Detail 28 of the checklist: as transformers' generate."""
    assert eos_token_ids(policy, tokenizer, are_chats=False) == (0,)
    policy.generation_config.eos_token_id = [5, 0, 7]
    assert eos_token_ids(policy, tokenizer, are_chats=False) == (0, 5, 7)
    policy.generation_config.eos_token_id = 5
    assert eos_token_ids(policy, tokenizer, are_chats=False) == (0, 5)
    policy.generation_config.eos_token_id = None
    assert eos_token_ids(policy, tokenizer, are_chats=False) == (0,)
    policy.generation_config = None
    assert eos_token_ids(policy, tokenizer, are_chats=False) == (0,)
    assert caplog.text == ""


def test_a_word_that_only_config_json_names_is_a_leftover_and_said(policy, tokenizer, caplog):
    """Without a generation_config.json, transformers makes one of config.json, which may have its class's defaults."""
    policy.config.eos_token_id = policy.generation_config.eos_token_id = 5
    assert eos_token_ids(policy, tokenizer, are_chats=False) == (0,)
    assert "config.json names token 5 as EOS, which is no special token of its tokenizer" in caplog.text
    policy.config.eos_token_id = policy.generation_config.eos_token_id = 1  # a special token: meant
    assert eos_token_ids(policy, tokenizer, are_chats=False) == (0, 1)


def test_the_token_by_which_the_chat_template_ends_a_turn_ends_completions_of_chats(policy, chat_tokenizer, caplog):
    end = chat_tokenizer.convert_tokens_to_ids("<end>")
    assert eos_token_ids(policy, chat_tokenizer, are_chats=False) == (0,)
    assert caplog.text == ""
    assert eos_token_ids(policy, chat_tokenizer, are_chats=True) == (0, end)
    assert f"ends a turn with <end> ({end}), which neither" in caplog.text
    caplog.clear()
    policy.generation_config.eos_token_id = [0, end]
    assert eos_token_ids(policy, chat_tokenizer, are_chats=True) == (0, end)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }} {% endfor %}",
        "{% for m in messages %}<start>{{ m['content'] }}{% endfor %}",
        "{{ raise_exception('roles') }}",
    ],
)
def test_a_template_that_ends_turns_with_no_token_adds_none(policy, chat_tokenizer, template):
    chat_tokenizer.chat_template = template
    assert eos_token_ids(policy, chat_tokenizer, are_chats=True) == (0,)


def test_without_any_eos_nothing_could_end(policy, make_tokenizer):
    policy.config.eos_token_id = policy.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match=r"no EOS token .* so no completion could ever end; set eos_token"):
        eos_token_ids(policy, make_tokenizer(), are_chats=False)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("replace", ", so every score became -1 (missing_eos_score); completions end at <eos> (0), w5 (5): "),
        ("subtract", ", so every score was lowered by 1 (missing_eos_penalty); "),
        ("off", " tokens (max_completion_tokens); "),
    ],
)
def test_what_is_said_where_nothing_ended_names_the_rule_and_the_tokens(tokenizer, rule, says):
    assert says in no_ending(PPOConfig(missing_eos=rule), (0, 5), tokenizer)


def test_a_run_in_which_nothing_ends_says_so_once(make_trainer, make_policy, caplog):
    policy = make_policy()

    def never_end(module, args, output):
        output.logits = output.logits.index_fill(-1, torch.tensor([0]), -1e9)

    policy.register_forward_hook(never_end)
    with caplog.at_level(logging.WARNING, "plaudit_ppo"):
        make_trainer(policy=policy, reference=policy, iterations=3).train()
    assert caplog.text.count("no completion of an iteration ended within 6 tokens (max_completion_tokens)") == 1
