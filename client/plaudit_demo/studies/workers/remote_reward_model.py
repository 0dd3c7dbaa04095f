"""The served reward model, as TRL's PPO takes one. Imports nothing of TRL."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from plaudit_client import RewardClient


class RemoteRewardModel(nn.Module):
    """The served reward model in the form that TRL takes: a backbone, and a head over its hidden states.

    TRL wants a reward model with the policy's tokenizer. This one turns the ids back into text, asks the service, and
    gives each position of a row the row's score as its only hidden state.

    Args:
        client: of the service.
        tokenizer: the policy's.
    """

    base_model_prefix = "backbone"

    def __init__(self, client: RewardClient, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.backbone = self._score
        self.score = nn.Identity()
        self._client, self._tokenizer = client, tokenizer

    def _score(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        items = []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            kept = ids[mask].tolist()
            finished = kept[-1] == self._tokenizer.eos_token_id
            text = self._tokenizer.decode(kept[:-1] if finished else kept, clean_up_tokenization_spaces=False)
            items.append({"text": text, "finished": finished})
        scores = []
        for result in self._client.score(items):
            if result.score is None:
                raise RuntimeError(f"the service did not score a completion: {result.status} ({result.detail})")
            scores.append(result.score)
        states = torch.tensor(scores)[:, None, None].expand(-1, input_ids.shape[1], 1)  # (B, S, 1)
        return SimpleNamespace(hidden_states=(states,))
