"""A trainer of tiny networks, whose parts a test can look at once it has trained."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from plaudit_ppo import PPOTrainer

WORDS = ["<eos>", "<pad>", *(f"w{number}" for number in range(2, 32))]  # the word's number is its id
# A decoder of two layers, whatever its architecture calls its sizes.
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 64,
    "vocab_size": 32,
    "initializer_range": 0.3,
    "num_labels": 1,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


class KilledError(Exception):
    """Ends a run in the way of a kill: nothing is tidied up."""


def stop_after(iteration):
    """An `on_iteration` that kills the run when so many are done."""

    def on_iteration(metrics):
        if metrics["iteration"] == iteration:
            raise KilledError

    return on_iteration


@dataclass(frozen=True)
class TinyTrainer:
    """A PPOTrainer with its parts by name; policy and critic are trained in place."""

    trainer: PPOTrainer
    policy: nn.Module
    reference: nn.Module | None
    critic: nn.Module
    output: Path

    def train(self, **options):
        """Run all iterations, as PPOTrainer.train does."""
        return self.trainer.train(**options)

    def trained(self) -> Tensor:
        """All weights that it trains."""
        return weights(self.policy, self.critic)

    def log(self) -> list[dict]:
        """The metrics of each iteration."""
        return [json.loads(line) for line in (self.output / "log.jsonl").read_text().splitlines()]

    def evaluations(self) -> list[dict]:
        """The evaluations on held-out prompts, without what a clock says."""
        lines = map(json.loads, (self.output / "evaluations.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]

    def log_without_times(self) -> list[dict]:
        """The log without what a clock says."""
        times = ("time/", "scoring/call_s", "scoring/exposed_wait_s")
        return [{name: value for name, value in line.items() if not name.startswith(times)} for line in self.log()]


def weights(*models: nn.Module) -> Tensor:
    """All weights of models in one row."""
    return torch.cat([parameter.detach().flatten() for model in models for parameter in model.parameters()])


def tiny_tokenizer(**special) -> PreTrainedTokenizerFast:
    """A word is a token; `special` names those that are special."""
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="w2"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)
