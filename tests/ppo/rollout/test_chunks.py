import pytest
import torch
from tiny_trainer import SIZES
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from plaudit_ppo.config import PPOConfig
from plaudit_ppo.errors import ConfigError
from plaudit_ppo.models.lora import add_lora
from plaudit_ppo.models.networks import disable_dropout
from plaudit_ppo.planning.live_memory import LiveMemory
from plaudit_ppo.rollout.chunks import answer_in_chunks
from plaudit_ppo.rollout.forward import completion_logprobs
from plaudit_ppo.rollout.prompts import pad_left
from plaudit_ppo.rollout.sampling import sample_rollouts

# Softcap (Gemma 2), scales (Granite, Cohere), tied and untied heads, other names, an encoder's frame (OPT).
ARCHITECTURES = ["llama", "qwen2", "gemma2", "gemma3_text", "granite", "cohere", "gpt_neox", "opt"]


def rollouts_of(policy):
    return sample_rollouts(
        policy,
        *pad_left([[2, 3], [4, 5, 6, 7, 8, 9], [10]], 1),
        max_tokens=8,
        temperature=1.0,
        eos_ids=[0],
        pad_id=1,
        generator=torch.Generator().manual_seed(1),
    )


def figures(policy, rollouts, chunk_tokens):
    """Log-probabilities, entropies and the gradients of a sum of both."""
    policy.zero_grad()
    logprobs, entropies = completion_logprobs(
        policy, rollouts, temperature=0.7, chunk_tokens=chunk_tokens, entropy_gradient=True
    )
    mask = rollouts.completion_mask
    (logprobs.where(mask, 0.0).sum() / 8 + 0.1 * entropies.where(mask, 0.0).sum()).backward()
    gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return logprobs.detach(), entropies.detach(), torch.cat(gradients)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_give_the_logprobs_entropies_and_gradients_of_whole_logits(architecture, lora_rank):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = disable_dropout(AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**SIZES)))
    network = policy
    if lora_rank:
        policy = add_lora(policy, PPOConfig(lora_rank=lora_rank))
    rollouts = rollouts_of(policy)
    whole = figures(policy, rollouts, 0)
    answer_in_chunks(network)
    for size in (1, 5, 1000):
        for part, expected in zip(figures(policy, rollouts, size), whole, strict=True):
            assert (part - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))
    for part, expected in zip(figures(policy, rollouts, 0), whole, strict=True):
        assert torch.equal(part, expected)  # asked for logits, it answers as before


def test_chunks_that_only_other_processes_have_are_passes_forward_and_backward_and_change_no_bit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SIZES))
    rollouts, own, passes, found = rollouts_of(policy), policy.forward, [], []
    policy.lm_head.register_forward_hook(lambda *_: passes.append(1))
    for more in (0, 2):
        policy.forward = own
        answer_in_chunks(policy, is_checked=False, agree=lambda count, more=more: count + more)
        passes.clear()
        found.append((*figures(policy, rollouts, 5), len(passes)))
    (*alone, count), (*with_others, count_with_others) = found
    assert all(torch.equal(*pair) for pair in zip(alone, with_others, strict=True))
    assert count_with_others == count + 4


@pytest.mark.parametrize("has_gradients", [False, True])
def test_there_are_never_more_logits_than_those_of_a_chunk(has_gradients):
    """Measured by the tensors that are there at once: 3 rollouts of 8 tokens, whole and 4 tokens at a time."""
    policy = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SIZES | {"vocab_size": 500}))
    answer_in_chunks(policy)
    rollouts, row = rollouts_of(policy), 4 * policy.config.vocab_size
    peaks = {}
    for size in (0, 4):
        memory = LiveMemory([*policy.parameters(), *policy.buffers()], vocabulary=policy.config.vocab_size)
        with memory, torch.set_grad_enabled(has_gradients):
            logprobs, _ = completion_logprobs(
                policy, rollouts, temperature=0.7, chunk_tokens=size, entropy_gradient=False
            )
            if has_gradients:
                logprobs.sum().backward()
        peaks[size] = memory.peak["logits"]
    assert peaks[0] >= 3 * rollouts.completion_ids.numel() * row
    assert peaks[4] <= 5 * 4 * row


def test_a_network_whose_head_needs_more_than_the_last_hidden_states_is_refused(policy):
    policy.model.forward = lambda *_, **__: (_ for _ in ()).throw(ValueError("of its own kind"))
    with pytest.raises(ConfigError, match=r"logits_chunk_tokens: LlamaForCausalLM does not compute its logits"):
        answer_in_chunks(policy)


@pytest.mark.parametrize(
    "settings", [{}, {"lora_rank": 4}, {"gradient_checkpointing": True}, {"entropy_coef": 0.1}, {"kl_loss_coef": 0.2}]
)
def test_a_run_in_chunks_has_the_figures_of_one_with_whole_logits(make_trainer, make_policy, settings):
    def train(chunk_tokens):
        policy, rank = make_policy(), settings.get("lora_rank", 0)
        trainer = make_trainer(
            policy=add_lora(policy, PPOConfig(lora_rank=rank)) if rank else policy,
            reference=False if rank else None,
            output=f"run-{chunk_tokens}",
            logits_chunk_tokens=chunk_tokens,
            lr_schedule="constant",
            **settings,
        )
        trainer.train()
        return trainer.trained(), trainer.log_without_times()

    weights, log = train(0)
    in_chunks, log_in_chunks = train(5)
    assert torch.allclose(weights, in_chunks, atol=1e-6)
    for line, expected in zip(log_in_chunks, log, strict=True):
        assert line == pytest.approx(expected, abs=5e-5, nan_ok=True)
