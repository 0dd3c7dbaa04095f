from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from plaudit_export.checkpoints.checkpoint import Checkpoint, load_checkpoint
from plaudit_export.checkpoints.positions import usable_positions
from plaudit_export.testing import tiny_causal_checkpoint, tiny_encoder_checkpoint


def checkpoint_of(model_type: str, **fields: object) -> Checkpoint:
    """A model alone: its positions do not depend on the tokenizer."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(model_type, vocab_size=50, **sizes | fields)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    return Checkpoint("it", None, "causal", type(model).__name__, model, None)


def test_a_decoder_has_as_many_positions_as_its_config_says(causal_checkpoint):
    assert usable_positions(load_checkpoint(str(causal_checkpoint))) == 256


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta"])
def test_roberta_cannot_use_the_positions_up_to_its_pad_token(architecture):
    assert usable_positions(checkpoint_of(architecture, max_position_embeddings=514, pad_token_id=1)) == 512


def test_opt_keeps_the_two_extra_positions_to_itself():
    assert usable_positions(checkpoint_of("opt", max_position_embeddings=64, ffn_dim=16, word_embed_proj_dim=16)) == 64


LONG_ROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [4.0, 5.0, 6.0, 7.0],
}


def test_rotary_frequencies_that_follow_the_longest_text_are_frozen_where_they_are_right():
    fields = {"max_position_embeddings": 96, "original_max_position_embeddings": 24, "pad_token_id": 0}
    checkpoint = checkpoint_of("phi3", rope_scaling=LONG_ROPE, **fields)
    short, long = torch.arange(1, 21).unsqueeze(0), torch.arange(1, 41).unsqueeze(0)
    with torch.no_grad():
        expected = checkpoint.model(short).logits
        assert usable_positions(checkpoint) == 24
        checkpoint.model(long)
        assert torch.equal(checkpoint.model(short).logits, expected)


def test_a_dynamic_rope_is_right_up_to_the_original_context():
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    checkpoint = checkpoint_of("llama", max_position_embeddings=32, rope_scaling=scaling, pad_token_id=0)
    assert usable_positions(checkpoint) == 32


def test_the_builders_use_positions_as_real_models_do(tmp_path: Path):
    roberta = tiny_encoder_checkpoint(tmp_path / "roberta", architecture="roberta")
    assert usable_positions(load_checkpoint(str(roberta))) == 128
    gpt2 = tiny_causal_checkpoint(tmp_path / "gpt2", architecture="gpt2")
    assert usable_positions(load_checkpoint(str(gpt2))) == 256
