"""The reward models of the benchmarks, with random heads: made and exported once, and kept.

`encoder`: the real MiniLM encoder (22M parameters). `decoder`: a Llama, 24M parameters without its embeddings,
8 layers, hidden size 512, 2 KV heads, MiniLM's tokenizer. `tiny`: a Llama of two layers, for the soak. `write_llama`: a
Llama of any size, as large ones for GPUs.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from texts import ROOT, generate_dialogues

WORK = ROOT / "runs" / "bench"

Kind = Literal["encoder", "decoder", "tiny"]


@dataclass(frozen=True)
class Subject:
    """A model under test: the bundle that is served, and the checkpoint that a plain handler loads."""

    kind: Kind
    checkpoint: Path
    bundle: Path


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama; `spread_on` texts are computed to give its scores mean 0 and standard deviation 1."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    max_tokens: int
    spread_on: int


_DECODER = LlamaShape(512, 1536, 8, 8, 2, max_tokens=2048, spread_on=32)
# 100m: 0.1 billion parameters, 1b: 1.0 (the layers of Llama 3.2 1B), 8b: 7.1 (those of Llama 3 8B). All with the 30,522
# embeddings of MiniLM's tokenizer.
LLAMA_SHAPES = {
    "100m": LlamaShape(768, 2048, 12, 12, 4, max_tokens=4096, spread_on=16),
    "1b": LlamaShape(2048, 8192, 16, 32, 8, max_tokens=4096, spread_on=8),
    "8b": LlamaShape(4096, 14336, 32, 32, 8, max_tokens=8192, spread_on=8),
}


def subject(kind: Kind, work: Path = WORK) -> Subject:
    """The model, exported where it is not there yet."""
    made = Subject(kind, work / f"{kind}-checkpoint", work / f"{kind}-bundle")
    if not made.bundle.exists():
        _WRITERS[kind](made.checkpoint)
        export = Path(sys.executable).with_name("plaudit-export")
        subprocess.run([export, "checkpoint", made.checkpoint, made.bundle], check=True, stdout=sys.stderr)
    return made


def minilm_bundle(work: Path = WORK) -> Path:
    """The bundle of the encoder."""
    return subject("encoder", work).bundle


def write_encoder(path: Path) -> None:
    """Write the MiniLM encoder with a random head."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    from plaudit_export.testing import minilm_encoder

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(minilm_encoder(), num_labels=1)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(minilm_encoder()).save_pretrained(path)


def _write_decoder(path: Path) -> None:
    write_llama(path, _DECODER)


def write_llama(path: Path, shape: LlamaShape, *, dtype: str = "float32") -> None:
    """Write a random Llama with a scalar head and MiniLM's tokenizer.

    Args:
        path: The directory to make.
        shape: Its sizes.
        dtype: What the weights are stored in: `float32` or `bfloat16`.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from plaudit_export.testing import minilm_encoder

    tokenizer = AutoTokenizer.from_pretrained(minilm_encoder(), model_input_names=["input_ids", "attention_mask"])
    tokenizer.model_max_length = shape.max_tokens
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        num_labels=1,
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    texts = generate_dialogues(shape.spread_on)
    _spread_scores(model, [tokenizer(each.text, return_tensors="pt") for each in texts])
    model.to(getattr(torch, dtype)).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _spread_scores(model: Any, texts: list[Any]) -> None:
    """Draw weights so that every token moves the score, and give scores mean 0 and standard deviation 1."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=1.0 if "embed" in name else parameter.shape[-1] ** -0.5)
        features = torch.cat([model.model(**text).last_hidden_state[:, -1] for text in texts])  # (texts, hidden)
        mean = features.mean(dim=0)
        weight = model.score.weight  # (1, hidden)
        weight -= (weight @ mean) / mean.square().sum() * mean
        weight /= (features @ weight.T).std()


def _write_tiny(path: Path) -> None:
    from plaudit_export.testing import tiny_causal_checkpoint

    tiny_causal_checkpoint(path)


_WRITERS = {"encoder": write_encoder, "decoder": _write_decoder, "tiny": _write_tiny}
