import json
import subprocess
import sys

import pytest
import torch

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.testing import (
    CAUSAL_ARCHITECTURES,
    CORPUS,
    ENCODER_ARCHITECTURES,
    tiny_causal_checkpoint,
    tiny_encoder_checkpoint,
)


@pytest.mark.parametrize("architecture", [*CAUSAL_ARCHITECTURES, *ENCODER_ARCHITECTURES])
def test_scores_of_a_tiny_checkpoint_differ_by_one_or_more(architecture, tmp_path):
    build = tiny_causal_checkpoint if architecture in CAUSAL_ARCHITECTURES else tiny_encoder_checkpoint
    checkpoint = load_checkpoint(str(build(tmp_path, architecture=architecture)))
    with torch.no_grad():
        inputs = [checkpoint.tokenizer(text, return_tensors="pt") for text in CORPUS]
        scores = torch.cat([checkpoint.model(**each).logits for each in inputs])
    assert scores.std().item() > 0.99


def test_builders_are_deterministic_across_processes_and_differ_by_seed(tmp_path):
    script = (
        "import sys; from plaudit_export.testing import *; "
        "tiny_causal_checkpoint(sys.argv[1] + '/c'); tiny_encoder_checkpoint(sys.argv[1] + '/e')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True)
    for name, build in (("c", tiny_causal_checkpoint), ("e", tiny_encoder_checkpoint)):
        path = build(tmp_path / name)
        for file in ("model.safetensors", "tokenizer.json"):
            assert (path / file).read_bytes() == (tmp_path / "other" / name / file).read_bytes()
        seeded = build(tmp_path / f"{name}1", seed=1)
        assert (path / "model.safetensors").read_bytes() != (seeded / "model.safetensors").read_bytes()


def test_a_tiny_causal_checkpoint_carries_a_chat_template_and_the_pad_that_is_asked_for(tmp_path):
    pads = {"own": 0, "eos": 3, "none": None}
    for pad, expected in pads.items():
        path = tiny_causal_checkpoint(tmp_path / pad, pad=pad)
        assert json.loads((path / "config.json").read_text()).get("pad_token_id") == expected
    tokenizer = load_checkpoint(str(path)).tokenizer
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n"
