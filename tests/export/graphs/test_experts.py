"""Each expert computes the tokens that chose it: the same numbers as transformers' loop."""

import pytest
import torch
import transformers

from plaudit_export.graphs.experts import take_experts_apart

pytestmark = pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 has no choice of experts")

SIZES = {
    "hidden_size": 16,
    "moe_intermediate_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "num_experts_per_tok": 2,
}


def mixture(model_type: str) -> torch.nn.Module:
    counts = {"gpt_oss": "num_local_experts"}
    config = transformers.AutoConfig.for_model(
        model_type, **SIZES, **{counts.get(model_type, "num_experts"): 6}, experts_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_()
    return model.layers[0].mlp.experts


# gpt-oss stores its weights the other way round, with biases, and has a gate of its own.
@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_experts_taken_apart_give_what_the_loop_gives(model_type, num_tokens):
    experts = mixture(model_type)
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 16, generator=generator)
    shares, chosen = torch.rand(num_tokens, 6, generator=generator).topk(2)  # of nine tokens some experts get none
    expected = experts(hidden, chosen, shares)
    take_experts_apart(experts)
    assert not {"gate_up_proj", "down_proj"} & {name for name, _ in experts.named_parameters(recurse=False)}
    torch.testing.assert_close(experts(hidden, chosen, shares), expected)


def test_a_model_without_experts_stays_as_it_is():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    before = dict(model.named_parameters())
    take_experts_apart(model)
    assert dict(model.named_parameters()) == before
