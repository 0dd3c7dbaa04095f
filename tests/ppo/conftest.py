"""A tiny policy, critic and tokenizer, and a trainer made of them."""

import pytest
import torch
from tiny_trainer import TinyTrainer, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from plaudit_client import Score
from plaudit_ppo import Critic, PPOConfig, PPOTrainer, Prompt, frozen_copy


@pytest.fixture(scope="module", autouse=True)
def one_thread(own_process):
    torch.set_num_threads(1)


@pytest.fixture
def make_tokenizer():
    return tiny_tokenizer


@pytest.fixture
def tokenizer():
    return tiny_tokenizer(eos_token="<eos>", pad_token="<pad>")


def _config():
    return LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        num_labels=1,
        initializer_range=0.2,  # wide, so that distributions are far from uniform and differences show
    )


@pytest.fixture
def make_policy():
    def make(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(_config()).eval()

    return make


@pytest.fixture
def make_critic():
    def make(seed=1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Critic(LlamaForSequenceClassification(_config())).eval()

    return make


@pytest.fixture
def policy(make_policy):
    return make_policy()


@pytest.fixture
def critic(make_critic):
    return make_critic()


@pytest.fixture
def prompts():
    return [Prompt(text="w2 w3"), Prompt(text="w4 w5 w6 w7"), Prompt(text="w8")]


def share_of_w3(items):
    """A scorer: the share of the word w3 in the completion."""
    completions = [item["completion"].split() for item in items]
    return [Score("ok", words.count("w3") / max(1, len(words))) for words in completions]


@pytest.fixture
def scorer():
    return share_of_w3


@pytest.fixture
def make_trainer(make_policy, make_critic, tokenizer, prompts, tmp_path):
    """A trainer with small defaults; settings and parts can be replaced. `output` is a folder of `tmp_path`."""

    def make(scorer=share_of_w3, *, policy=None, critic=None, reference=None, tokenizer=tokenizer, prompts=prompts,
             eval_scorer=None, eval_prompts=(), output="run", **settings):  # fmt: skip
        small = {
            "output": str(tmp_path / output),
            "iterations": 2,
            "rollout_batch_size": 8,
            "rollout_micro_batch_size": 4,
            "max_completion_tokens": 6,
            "learning_rate": 1e-3,
            "temperature": 1.0,
        }
        small["prompts"] = [f"source {number}" for number in range(len(settings.get("prompt_weights", ())))]
        policy, critic = policy or make_policy(), critic or make_critic()
        reference = None if reference is False else reference or frozen_copy(policy)
        config = PPOConfig(**small | settings)
        trainer = PPOTrainer(config, policy, reference, critic, tokenizer, prompts, scorer, eval_scorer, eval_prompts)
        return TinyTrainer(trainer, policy, reference, critic, tmp_path / output)

    return make
