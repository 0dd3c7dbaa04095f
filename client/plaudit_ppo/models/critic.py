"""The critic: a network of its own with a scalar head, or a head on the policy's network."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.models.networks import disable_dropout, load_pretrained, refuse_own_code, save_network
from plaudit_ppo.models.sharding import load_whole_state
from plaudit_ppo.models.tokenizer_file import load_tokenizer

_VALUE_HEAD = "value_head.safetensors"
_OTHER_CRITICS = (
    'set critic_trunk = "policy" (a head on the policy\'s network), or critic to the directory of a reward model that '
    "was made from a causal LM with num_labels = 1 and has the policy's tokenizer"
)


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
        save_network(self.model, directory, of_model)

    def restore(self, directory: Path) -> None:
        """Takes the weights that `save_pretrained` wrote."""
        saved = load_critic(directory, head_init="zero", generator=torch.Generator(), builtin_class=True)
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
        values: Tensor = self.score(hidden.to(self.score.weight.dtype))[:, :, 0]
        return values

    def save_pretrained(self, directory: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Writes the head alone, or another state of it."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.state_dict() if state_dict is None else state_dict), directory / _VALUE_HEAD)

    def restore(self, directory: Path) -> None:
        """Takes the weights that `save_pretrained` wrote."""
        self.load_state_dict(load_file(directory / _VALUE_HEAD))


def load_critic(path: str | Path, *, head_init: str, generator: torch.Generator, builtin_class: bool = False) -> Critic:
    """A critic from the directory of a reward model, with its head, or of a causal LM, with a new head.

    Args:
        path: the directory.
        head_init: how a new head starts: "normal" or "zero".
        generator: random generator for "normal".
        builtin_class: use transformers' own class even if the config names custom code.

    Raises:
        CheckpointError: the directory is missing, holds neither, or its config names custom code for a reward model;
            or transformers has no sequence classifier of this model type.
    """
    if not builtin_class:
        refuse_own_code(AutoModelForSequenceClassification, path, "critic")
    config = load_pretrained(AutoConfig, path, "critic")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise CheckpointError(
            f"critic: transformers has no sequence classifier of model type {config.model_type} ({path}), so none can "
            f"be made of it; {_OTHER_CRITICS}"
        )
    model, info = load_pretrained(
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
    own = load_tokenizer(path, "critic's tokenizer").get_vocab()
    for number, token in sorted((number, token) for token, number in tokenizer.get_vocab().items()):
        if own.get(token, number) != number:
            raise CheckpointError(
                f"critic: {path} has another tokenizer than the policy (token {token!r} is {own[token]}, the policy's "
                f"{number}), and would misread the policy's tokens; give a model with the policy's tokenizer, or leave "
                "critic out"
            )


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
