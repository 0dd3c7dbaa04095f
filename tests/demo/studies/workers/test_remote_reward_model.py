import pytest
import torch

from plaudit_client import Score
from plaudit_demo.studies.workers.remote_reward_model import RemoteRewardModel

EOS, PAD = 0, 1


class Client:
    """Remembers the items; gives the n-th one the score n."""

    def score(self, items):
        self.items = items
        return [Score("ok", float(number)) for number, _ in enumerate(items)]


def test_rows_become_texts_and_every_position_of_a_row_gets_its_score(tokenizer):
    client = Client()
    model = RemoteRewardModel(client, tokenizer)
    rows = torch.tensor([[PAD, 5, 6, 7, EOS, PAD], [4, 5, 6, 7, 8, 9]])  # prompts padded left, completions right
    mask = rows != PAD
    output = getattr(model, model.base_model_prefix)(
        input_ids=rows.masked_fill(~mask, 0), attention_mask=mask, position_ids=rows, use_cache=False
    )
    assert client.items == [
        {"text": "w5 w6 w7", "finished": True},
        {"text": "w4 w5 w6 w7 w8 w9", "finished": False},
    ]
    assert model.score(output.hidden_states[-1]).squeeze(-1).tolist() == [[0.0] * 6, [1.0] * 6]


def test_a_completion_without_a_score_is_an_error_not_a_number(tokenizer):
    class Failing:
        def score(self, items):
            return [Score("too_long", None, detail="9000 tokens") for _ in items]

    model = RemoteRewardModel(Failing(), tokenizer)
    with pytest.raises(RuntimeError, match="too_long"):
        model.backbone(input_ids=torch.tensor([[5]]), attention_mask=torch.tensor([[1]]))
