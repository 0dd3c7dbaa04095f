"""Tokenizers trained in place and small Llama models with random weights."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unknown>"


def train_policy_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE without BOS whose pad token is not its EOS token.

    Args:
        texts: what to learn the merges from.
        vocab_size: of which 258 are the bytes and the two special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, padding_side="left")


def train_reward_model_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word, in lower case: another tokenizer than the policy's, as reward models mostly have."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=[PAD, EOS, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, padding_side="right", unk_token=UNKNOWN)


def make_causal_lm(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, num_layers: int, max_tokens: int, seed: int
) -> LlamaForCausalLM:
    """A Llama language model with random weights drawn from `seed`."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_config(tokenizer, hidden_size, num_layers, max_tokens))


def make_sequence_classifier(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, num_layers: int, max_tokens: int, seed: int
) -> LlamaForSequenceClassification:
    """A Llama with one scalar head and random weights drawn from `seed`: a reward model, or a critic."""
    torch.manual_seed(seed)
    config = _config(tokenizer, hidden_size, num_layers, max_tokens)
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def _wrap(tokenizer: Tokenizer, **settings: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False, **settings
    )


def _config(tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int, max_tokens: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
