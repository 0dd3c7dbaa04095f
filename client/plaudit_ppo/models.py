"""Policy, reference and critic: loaded from checkpoint directories, dropout off, saved as what transformers reads."""

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from plaudit_ppo.directories import describe
from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.lora import is_lora, restore_adapter
from plaudit_ppo.sharding import load_whole_state

_log = logging.getLogger(__name__)
_VALUE_HEAD = "value_head.safetensors"
_OTHER_CRITICS = (
    'set critic_trunk = "policy" (a head on the policy\'s network), or critic to the directory of a reward model that '
    "was made from a causal LM with num_labels = 1 and has the policy's tokenizer"
)
_Module = TypeVar("_Module", bound=nn.Module)


class Critic(nn.Module):
    """A value for every position: the backbone of a `*ForSequenceClassification` and its scalar head `score`.

    Args:
        model: a sequence classifier with one label; `save_pretrained` writes it back as such.

    Raises:
        CheckpointError: it has no linear head named `score` with one output.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise CheckpointError(
                f"critic: {type(model).__name__} has no head `score` with one output; " + _OTHER_CRITICS
            )
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Values of shape (B, S) for int64 inputs of shape (B, S)."""
        hidden = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        values: Tensor = self.model.score(hidden)[:, :, 0]
        return values

    def save_pretrained(self, directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Writes the classifier: safetensors and config.

        Args:
            directory: made if missing.
            state_dict: of this critic, if not its own.
        """
        state = self.state_dict() if state_dict is None else state_dict
        of_model = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        self.model.save_pretrained(directory, state_dict=of_model)

    def restore(self, directory: Path) -> None:
        """Takes the weights that `save_pretrained` wrote."""
        saved = load_critic(directory, head_init="zero", generator=torch.Generator())
        load_whole_state(self, saved.state_dict())


class TrunkCritic(nn.Module):
    """A value for every position: a scalar head on the policy's own network, which the value loss trains too.

    Ziegler et al. 2019, arXiv 1909.08593. Deviation: the network is run again for the values.

    Args:
        policy: a causal LM; not registered as a part, because its weights are the policy's to update and to save.
        head_init: "normal" or "zero".
        generator: for "normal".
    """

    def __init__(self, policy: PreTrainedModel, *, head_init: str, generator: torch.Generator) -> None:
        super().__init__()
        self.score = nn.Linear(policy.config.hidden_size, 1)
        init_head(self.score, head_init=head_init, generator=generator)
        self._policy = (policy,)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Values of shape (B, S) for int64 inputs of shape (B, S)."""
        (policy,) = self._policy
        hidden = policy.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        values: Tensor = self.score(hidden)[:, :, 0]
        return values

    def save_pretrained(self, directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Writes the head alone, or another state of it."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.state_dict() if state_dict is None else state_dict), directory / _VALUE_HEAD)

    def restore(self, directory: Path) -> None:
        """Takes the weights that `save_pretrained` wrote."""
        self.load_state_dict(load_file(directory / _VALUE_HEAD))


def load_policy(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in float32 and its tokenizer, from a checkpoint directory.

    Raises:
        CheckpointError: the directory is missing or does not hold both.
    """
    model = _load(AutoModelForCausalLM, path, "policy", dtype=torch.float32, use_safetensors=True)
    return disable_dropout(model), _load(AutoTokenizer, path, "policy's tokenizer")


def load_critic(path: str | Path, *, head_init: str, generator: torch.Generator) -> Critic:
    """A critic from a reward model's directory, whose head it keeps, or from a causal LM's, with a new head.

    Raises:
        CheckpointError: the directory is missing, or holds neither; or transformers has no classifier of its kind.
    """
    config = _load(AutoConfig, path, "critic")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise CheckpointError(
            f"critic: transformers has no sequence classifier of model type {config.model_type} ({path}), so none can be "
            f"made of it; {_OTHER_CRITICS}"
        )
    model, info = _load(
        AutoModelForSequenceClassification,
        path,
        "critic",
        dtype=torch.float32,
        use_safetensors=True,
        num_labels=1,
        output_loading_info=True,
    )
    critic = Critic(model)
    if "score.weight" in info["missing_keys"]:
        init_head(critic.model.score, head_init=head_init, generator=generator)
    return disable_dropout(critic)


def check_critic_tokens(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a critic whose own tokenizer gives the policy's tokens other ids: it reads the policy's ids.

    Args:
        path: of the critic; without a tokenizer there, nothing is known and nothing refused.
        tokenizer: the policy's.

    Raises:
        CheckpointError: names a token.
    """
    if not (Path(path) / "tokenizer_config.json").is_file():
        return
    own = _load(AutoTokenizer, path, "critic's tokenizer").get_vocab()
    for number, token in sorted((number, token) for token, number in tokenizer.get_vocab().items()):
        if own.get(token, number) != number:
            raise CheckpointError(
                f"critic: {path} has another tokenizer than the policy (token {token!r} is {own[token]}, the policy's "
                f"{number}), and would misread the policy's tokens; give a model with the policy's tokenizer, or leave "
                "critic out"
            )


def restore_weights(policy: PreTrainedModel, critic: Critic | TrunkCritic, checkpoint: Path) -> None:
    """Gives both the weights that a checkpoint has of them.

    Raises:
        CheckpointError: it has none, or they are of other models.
    """
    try:
        if is_lora(policy):
            restore_adapter(policy, checkpoint / "policy")
        else:
            load_whole_state(policy, load_policy(checkpoint / "policy")[0].state_dict())
        critic.restore(checkpoint / "critic")
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint}: of other models than those given; give the run's own") from error


def _load(auto: Any, path: str | Path, what: str, **options: Any) -> Any:  # transformers is untyped
    if not (Path(path) / "config.json").is_file():
        raise CheckpointError(f"{what}: {path} has no config.json; give the directory of a transformers checkpoint")
    try:
        return auto.from_pretrained(path, trust_remote_code=False, local_files_only=True, **options)
    except Exception as error:  # a checkpoint comes from outside; what reads it has exception types of its own
        raise CheckpointError(
            f"{what}: {path} cannot be loaded ({describe(error)}); it needs config.json, *.safetensors and tokenizer "
            "files"
        ) from error


def init_head(head: nn.Linear, *, head_init: str, generator: torch.Generator) -> None:
    """A new scalar head: weights from a normal distribution of std 1/sqrt(d + 1), or all zero; bias 0.

    Stiennon et al. 2020, code; Huang et al. 2024, detail on the head's initialization, arXiv 2403.17031.
    """
    with torch.no_grad():
        if head_init == "normal":
            head.weight.normal_(std=1 / math.sqrt(head.in_features + 1), generator=generator)
        else:
            head.weight.zero_()
        if head.bias is not None:
            head.bias.zero_()


def disable_dropout(model: _Module) -> _Module:
    """The same model, always deterministic: evaluation mode, and every dropout module at 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a network, as its class in transformers names them; an inner one before the one around it."""
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names][::-1]


def mend_generation_config(policy: PreTrainedModel) -> None:
    """Lets transformers write back what it has read: 4.57 refuses a temperature or top_p without `do_sample`."""
    config = getattr(policy, "generation_config", None)
    if config is None:
        return
    try:
        with TemporaryDirectory() as directory:
            config.save_pretrained(directory)
    except ValueError as error:
        if config.do_sample:
            return  # something else is wrong with it, which whoever writes it will say
        config.do_sample = True
        _log.warning(
            "the policy's generation_config.json has settings of sampling without do_sample, which transformers does "
            "not write (%s); the result's has do_sample = true",
            describe(error),
        )


def frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    """The reference: a copy of the policy that no optimizer can change."""
    reference: PreTrainedModel = copy.deepcopy(policy)
    return reference.requires_grad_(False)
