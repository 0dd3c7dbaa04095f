import json

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.models.networks import disable_dropout
from plaudit_ppo.models.policy import frozen_copy, load_policy


@pytest.fixture
def checkpoint(policy, tokenizer, tmp_path):
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def generator():
    return torch.Generator().manual_seed(0)


def test_a_policy_is_loaded_with_its_tokenizer(checkpoint, policy):
    loaded, tokenizer = load_policy(checkpoint)
    assert all(map(torch.equal, loaded.state_dict().values(), policy.state_dict().values()))
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")


def test_a_policy_whose_config_names_code_of_its_own_is_refused_unless_the_built_in_class_is_right(checkpoint, policy):
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.LlamaForCausalLM"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"names own\.LlamaForCausalLM for AutoModelForCausalLM.*builtin_class = true"
    ):
        load_policy(checkpoint)
    loaded, _ = load_policy(checkpoint, builtin_class=True)
    assert all(map(torch.equal, loaded.state_dict().values(), policy.state_dict().values()))


def test_dropout_is_off_wherever_it_is_hidden():
    """Detail 5: in modules and in functional calls, whatever the checkpoint's config says."""
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=20, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5
    )
    model = GPT2LMHeadModel(config).train()
    ids = torch.arange(10)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_the_reference_is_a_frozen_copy(policy):
    reference = frozen_copy(policy)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in policy.parameters())
    with torch.no_grad():
        policy.lm_head.weight.zero_()
    assert reference.lm_head.weight.any()


@pytest.mark.parametrize("tied", [False, True])
def test_a_reference_in_bfloat16_takes_half_and_leaves_the_policy_as_it_is(policy, tied):
    if tied:
        policy.lm_head.weight = policy.model.embed_tokens.weight
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    reference = frozen_copy(policy, "bfloat16")
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in reference.buffers()} == {torch.float32}  # of the positions, which must not be rounded
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert (reference.lm_head.weight is reference.model.embed_tokens.weight) == tied
    assert all(torch.equal(tensor, policy.state_dict()[name]) for name, tensor in before.items())
    ids = torch.arange(2, 10)[None]
    assert torch.allclose(reference(ids).logits.float(), policy(ids).logits, atol=0.2)


def test_what_transformers_never_rounds_stays_in_float32(policy):
    policy._keep_in_fp32_modules_strict = {"mlp"}
    kept = {name for name, p in frozen_copy(policy, "bfloat16").named_parameters() if p.dtype == torch.float32}
    assert len(kept) == 6
    assert all(".mlp." in name for name in kept)


def test_a_directory_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"policy: .*absent has no config\.json"):
        load_policy(tmp_path / "absent")


def test_pickled_weights_are_refused(policy, tokenizer, tmp_path):
    policy.config.save_pretrained(tmp_path)
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value)
