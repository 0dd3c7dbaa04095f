import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from plaudit_ppo import PPOConfig
from plaudit_ppo.errors import CheckpointError, ConfigError
from plaudit_ppo.models.lora import AdapterOff, add_lora, is_lora, save_merged

IDS = torch.arange(2, 10)[None]
CONFIG = PPOConfig(lora_rank=4)


def adapted(policy, shift=0.0):
    """A LoRA policy; with a shift, one whose adapter does something."""
    policy = add_lora(policy, CONFIG).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(shift)
    return policy


@pytest.fixture
def make_lora_trainer(make_trainer, make_policy):
    def make(**settings):
        policy = add_lora(make_policy(), PPOConfig(lora_rank=settings.pop("rank", 4)))
        return make_trainer(policy=policy, reference=False, lora_rank=4, **settings)

    return make


def test_only_the_adapter_is_trained_and_it_does_nothing_at_first(make_policy):
    policy = adapted(make_policy())
    assert is_lora(policy)
    assert not is_lora(make_policy())
    assert torch.equal(policy(IDS).logits, make_policy()(IDS).logits)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_the_adapter_comes_from_the_seed_alone(make_policy):
    """Detail 22."""
    torch.manual_seed(3)
    one = adapted(make_policy()).state_dict()
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    other = adapted(make_policy()).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_below_an_adapter_may_be_in_bfloat16_and_what_is_left_is_merged_in_float32(make_policy, tmp_path):
    halved = PPOConfig(lora_rank=4, precision="bfloat16", frozen_precision="bfloat16")
    whole, policy = add_lora(make_policy(), CONFIG), add_lora(make_policy(), halved)
    for (name, parameter), expected in zip(policy.named_parameters(), whole.parameters(), strict=True):
        is_adapter = "lora_" in name
        assert parameter.dtype == (torch.float32 if is_adapter else torch.bfloat16)
        assert parameter.requires_grad == is_adapter
        assert torch.equal(parameter, expected.to(parameter.dtype))
        if "lora_B" in name:
            parameter.data.add_(0.01)
    policy(IDS).logits.float().logsumexp(2).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in policy.parameters() if p.requires_grad)
    save_merged(policy, tmp_path, policy.state_dict())
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert merged.dtype == torch.float32
    assert torch.allclose(merged(IDS).logits, policy(IDS).logits.float(), atol=0.2)


def test_the_reference_is_the_policy_without_its_adapter(make_policy):
    policy = adapted(make_policy(), shift=0.1)
    reference = AdapterOff(policy)
    assert torch.equal(reference(input_ids=IDS).logits, make_policy()(IDS).logits)
    assert not torch.allclose(policy(IDS).logits, make_policy()(IDS).logits, atol=1e-2)  # and it is on again
    assert not list(reference.parameters())
    reference.requires_grad_(False)
    assert any(parameter.requires_grad for parameter in policy.parameters())


def test_a_run_trains_the_adapter_against_the_network_below_it(make_lora_trainer, make_policy):
    trainer = make_lora_trainer(lr_schedule="constant", learning_rate=1e-2)
    summary = trainer.train()
    assert summary.first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert abs(summary.final["objective/kl"]) > 1e-3
    with trainer.policy.disable_adapter():
        assert torch.equal(trainer.policy(IDS).logits, make_policy()(IDS).logits)  # the base has not moved


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT 0.21 asks for it
def test_what_is_left_is_a_merged_model_and_the_adapter(make_lora_trainer, make_policy):
    trainer = make_lora_trainer(learning_rate=1e-2)
    trainer.train()
    run = trainer.output
    merged = AutoModelForCausalLM.from_pretrained(run / "policy")
    with torch.no_grad():
        expected = trainer.policy.eval()(IDS).logits
        assert torch.allclose(merged(IDS).logits, expected, atol=1e-5)
        again = PeftModel.from_pretrained(make_policy(), run / "adapter").eval()
        assert torch.equal(again(IDS).logits, expected)
    assert not (run / "policy" / "adapter_config.json").exists()
    assert (run / "policy" / "README.md").exists()


def test_a_resumed_run_ends_in_the_same_bits_and_its_checkpoints_hold_no_base_weights(make_lora_trainer):
    settings = {"lr_schedule": "constant", "learning_rate": 1e-2}
    whole = make_lora_trainer(output="whole", iterations=4, **settings)
    whole.train()
    make_lora_trainer(iterations=2, **settings).train()
    resumed = make_lora_trainer(iterations=4, **settings)
    resumed.train(resume=True)
    states = [trainer.policy.state_dict().values() for trainer in (whole, resumed)]
    assert all(map(torch.equal, *states))
    saved = load_file(resumed.output / "checkpoints" / "iteration-000004" / "policy" / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)
    json.loads((resumed.output / "summary.json").read_text())


@pytest.mark.parametrize(
    ("options", "trains"),
    [
        ({"use_dora": True}, r"lora_magnitude_vector"),
        ({"lora_bias": True}, r"lora_B\.default\.bias"),
        ({"modules_to_save": ["lm_head"]}, r"lm_head\.modules_to_save"),
    ],
)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
def test_an_adapter_that_is_more_than_loras_two_matrices_is_refused(make_trainer, make_policy, options, trains):
    policy = get_peft_model(make_policy(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **options))
    with pytest.raises(ConfigError, match=rf"policy: its adapter trains .*{trains}.*; only LoRA's own matrices"):
        make_trainer(policy=policy, reference=False)


def test_another_adapter_and_a_missing_reference_are_refused(make_lora_trainer, make_trainer):
    make_lora_trainer(iterations=1).train()
    with pytest.raises(CheckpointError, match=r"it belongs to other models|not the adapter of this policy"):
        make_lora_trainer(iterations=2, rank=8).train(resume=True)
    with pytest.raises(ConfigError, match="reference: none given"):
        make_trainer(reference=False)


EXPERTS = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 8,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_an_adapter_of_experts_is_trained_resumed_and_merged(make_trainer, tmp_path, architecture):
    """PEFT wraps the fused parameters of experts, one wrapper around the other, not linear layers."""

    def make(output, iterations):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = AutoModelForCausalLM.from_config(CONFIG_MAPPING[architecture](**EXPERTS))
        policy = add_lora(policy, CONFIG)
        settings = {"lr_schedule": "constant", "learning_rate": 1e-2, "output": str(tmp_path / output)}
        return make_trainer(policy=policy, reference=False, iterations=iterations, **settings), policy.eval()

    trainer, policy = make("whole", 3)
    trainer.train()
    make("run", 2)[0].train()
    trainer, resumed = make("run", 3)
    trainer.train(resume=True)
    assert all(map(torch.equal, policy.state_dict().values(), resumed.state_dict().values()))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy").eval()
    with torch.no_grad():
        assert torch.allclose(merged(IDS).logits, resumed(IDS).logits, atol=1e-5)
        with resumed.disable_adapter():
            assert not torch.allclose(merged(IDS).logits, resumed(IDS).logits, atol=1e-3)
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad and "experts" in name]
    assert len(trained) >= 8
    assert all(name in {key for key, tensor in policy.state_dict().items() if tensor.any()} for name in trained)
