"""The policy, and the frozen copy of it that is the reference."""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from plaudit_ppo.models.networks import disable_dropout, load_pretrained, refuse_own_code
from plaudit_ppo.models.tokenizer_file import load_tokenizer


def load_policy(path: str | Path, *, builtin_class: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in float32 and its tokenizer, from a checkpoint directory.

    Args:
        path: the directory.
        builtin_class: transformers' class is right, also where the config names code of the checkpoint's own.

    Raises:
        CheckpointError: the directory is missing, does not hold both, or names code of its own for the model.
    """
    if not builtin_class:
        refuse_own_code(AutoModelForCausalLM, path, "policy")
    model = load_pretrained(AutoModelForCausalLM, path, "policy", dtype=torch.float32, use_safetensors=True)
    return disable_dropout(model), load_tokenizer(path, "policy's tokenizer")


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference: a copy of the policy that no optimizer can change."""
    reference: PreTrainedModel = copy.deepcopy(policy)
    return reference.requires_grad_(False)
