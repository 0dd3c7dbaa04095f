"""Which decoders attend without a mask, and that those which need one keep it."""

import pytest
import torch

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.graphs.causal_attention import NewKeyValues, maskless
from plaudit_export.graphs.tracing import needs_mask
from plaudit_export.testing import tiny_causal_checkpoint

MAX_TOKENS = 100


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        ("llama", {}, False),
        ("gpt2", {}, False),
        ("mistral", {"sliding_window": None}, False),
        ("mistral", {"sliding_window": MAX_TOKENS}, False),
        ("mistral", {"sliding_window": MAX_TOKENS - 1}, True),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}, False),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": MAX_TOKENS, "max_window_layers": 0}, False),
        ("gemma2", {"sliding_window": MAX_TOKENS - 1}, True),
        ("gemma2", {"sliding_window": MAX_TOKENS}, False),
        ("gemma3_text", {"sliding_window": MAX_TOKENS - 1}, True),
        # Positions in a bias that is added to the mask; attention of the model's own make.
        ("bloom", {}, True),
        ("gptj", {}, True),
        ("gpt_neo", {}, True),
    ],
)
def test_a_mask_is_needed_where_a_window_cuts_or_attention_is_of_another_make(tmp_path, architecture, config, expected):
    checkpoint = load_checkpoint(str(tiny_causal_checkpoint(tmp_path, architecture=architecture, **config)))
    assert needs_mask(checkpoint, MAX_TOKENS) == expected


def test_an_encoder_needs_its_mask(encoder_checkpoint):
    assert needs_mask(load_checkpoint(str(encoder_checkpoint)), MAX_TOKENS)


def test_a_model_that_sees_what_follows_keeps_its_mask(tmp_path):
    checkpoint = load_checkpoint(str(tiny_causal_checkpoint(tmp_path, architecture="qwen2", is_causal=False)))
    with torch.no_grad():
        first, second = (checkpoint.model.base_model(torch.tensor([[9, 8, last]])).last_hidden_state for last in (7, 6))
    sees_what_follows = not torch.allclose(first[:, 0], second[:, 0])  # transformers 4 knows no such Qwen2
    assert needs_mask(checkpoint, MAX_TOKENS) == sees_what_follows


@torch.no_grad()
def test_attention_is_as_before_when_the_operator_is_left(causal_checkpoint):
    model = load_checkpoint(str(causal_checkpoint)).model
    ids = torch.tensor([[9, 8, 7]])
    before, attention = model(ids).logits, model.config._attn_implementation
    nothing = [(torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8))] * 2
    with pytest.raises(ZeroDivisionError), maskless(model.base_model, nothing) as layers:  # noqa: PT012
        model.base_model(ids, past_key_values=NewKeyValues())
        assert [key.shape for key, _ in layers.present.values()] == [(1, 2, 3, 8)] * 2
        raise ZeroDivisionError
    assert model.config._attn_implementation == attention
    assert torch.equal(model(ids).logits, before)
