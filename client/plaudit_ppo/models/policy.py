"""The policy, and the frozen copy of it that is the reference."""

import copy
import importlib.metadata
import inspect
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from plaudit_ppo.errors import ConfigError, one_line
from plaudit_ppo.models.lora import is_lora
from plaudit_ppo.models.networks import disable_dropout, load_pretrained, refuse_own_code, stored_frozen
from plaudit_ppo.models.tokenizer_file import load_tokenizer

_log = logging.getLogger(__name__)


def load_policy(path: str | Path, *, builtin_class: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in float32 and its tokenizer, from a checkpoint directory.

    Args:
        path: the directory.
        builtin_class: use transformers' own class even if the config names custom code.

    Raises:
        CheckpointError: the directory is missing, does not hold both, or its config names custom code for the model.
    """
    if not builtin_class:
        refuse_own_code(AutoModelForCausalLM, path, "policy")
    model = load_pretrained(AutoModelForCausalLM, path, "policy", dtype=torch.float32, use_safetensors=True)
    return disable_dropout(model), load_tokenizer(path, "policy's tokenizer")


def check_cache(policy: PreTrainedModel) -> None:
    """Refuses a policy whose forward takes no key-value cache: the sampler goes on from one.

    Raises:
        ConfigError: names its class.
    """
    network = policy.get_base_model() if is_lora(policy) else policy
    if "past_key_values" not in inspect.signature(network.forward).parameters:
        installed = importlib.metadata.version("transformers")
        raise ConfigError(
            f"policy: {type(network).__name__} has no key-value cache (past_key_values), which sampling needs; give a "
            f"policy with attention, and a transformers below 5.24 (installed: {installed})"
        )


def mend_generation_config(policy: PreTrainedModel) -> None:
    """Lets transformers write back what it has read: 4.57 refuses a temperature or top_p without `do_sample`."""
    config = getattr(policy, "generation_config", None)
    if config is None or config.do_sample:
        return
    try:
        with TemporaryDirectory() as directory:
            config.save_pretrained(directory)
    except ValueError as error:
        config.do_sample = True
        _log.warning(
            "the policy's generation_config.json has sampling settings without do_sample, which transformers "
            "refuses to save (%s); the trained policy gets do_sample = true",
            one_line(error),
        )


def frozen_copy(policy: PreTrainedModel, precision: str = "float32") -> PreTrainedModel:
    """The reference: a copy of the policy that no optimizer can change.

    Args:
        policy: in float32.
        precision: "float32", or "bfloat16", which takes half the memory and rounds the reference's logprobs.
    """
    copies = {
        id(parameter): nn.Parameter(stored_frozen(policy, parameter, name, precision).clone(), requires_grad=False)
        for name, parameter in policy.named_parameters()
    }
    reference: PreTrainedModel = copy.deepcopy(policy, copies)  # a memo: what is in it is not copied
    return reference.requires_grad_(False)
