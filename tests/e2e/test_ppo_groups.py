"""Several completions of a prompt, scored as a group by a causal reward model behind the service."""

import httpx2
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plaudit_export.exporter import export_checkpoint
from plaudit_export.testing import tiny_causal_checkpoint
from plaudit_ppo import PPOConfig, PPOTrainer, Prompt, frozen_copy, load_critic
from plaudit_ppo.scoring.remote import RemoteScorer
from plaudit_service.testing import running_service

DIGITS = [str(number) for number in range(10)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    checkpoint = tiny_causal_checkpoint(folder / "checkpoint", max_position_embeddings=512)
    export_checkpoint(str(checkpoint), folder / "bundle")
    with running_service(folder / "bundle") as service:
        yield service


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Writes digits and never ends; a digit and the space before it are two tokens of the reward model."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<eos>", "<pad>", *DIGITS])}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=160, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = LlamaForCausalLM(config).eval()

    def only_digits(module, inputs, output):
        output.logits = torch.cat([torch.full_like(output.logits[..., :2], -1e4), output.logits[..., 2:]], dim=-1)
        return output

    policy.register_forward_hook(only_digits)
    folder = tmp_path_factory.mktemp("policy")
    policy.save_pretrained(folder)
    return policy, tokenizer, folder


def tokens(service):
    """Tokens that the service has computed, and those that sequences shared, so far."""
    lines = httpx2.get(f"{service.url}/metrics").text.splitlines()
    names = ("plaudit_computed_tokens_total", "plaudit_shared_tokens_total")
    return [float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1]) for name in names]


def test_four_completions_of_a_prompt_compute_at_most_half_the_tokens_of_four_rollouts(service, policy, tmp_path):
    """Detail 35: prompts of 256 tokens, completions of 64, as the reward model counts them."""
    model, tokenizer, folder = policy
    prompts = [Prompt(text=" ".join(DIGITS[(start + at) % 7] for at in range(128))) for start in range(8)]
    costs = {}
    for samples in (1, 4):
        before = tokens(service)
        config = PPOConfig(
            output=str(tmp_path / str(samples)), iterations=1, rollout_batch_size=8, rollout_micro_batch_size=4,
            samples_per_prompt=samples, max_completion_tokens=32, temperature=1.0, missing_eos="off", epochs=1,
            seed=samples,
        )  # fmt: skip
        critic = load_critic(folder, head_init="zero", generator=torch.Generator())
        with RemoteScorer(service.url, timeout_s=60) as scorer:
            trainer = PPOTrainer(config, model, frozen_copy(model), critic, tokenizer, prompts, scorer)
            assert trainer.train().masked_share == 0
        computed, shared = (after - start for after, start in zip(tokens(service), before, strict=True))
        assert computed + shared == pytest.approx(8 * (256 + 64), abs=8)
        costs[samples] = computed
    assert costs[4] <= 0.5 * costs[1]
