"""The head is made of its stored weights as they are, or refused."""

import pytest
import torch

from plaudit_export.checkpoints.heads import build_head
from plaudit_export.errors import SourceError

ONE, WIDE, LAST = torch.ones(1, 4), torch.ones(8, 4), torch.ones(1, 8)


def test_several_layers_have_relu_between_them():
    weights = {"0.weight": WIDE, "0.bias": -torch.arange(8.0), "2.weight": LAST}
    head = build_head("it", "v_head", weights, hidden_size=4)
    assert head(torch.ones(1, 4)).tolist() == [[4.0 + 3 + 2 + 1]]


def test_ten_layers_are_taken_in_the_order_of_their_numbers():
    weights = {f"{2 * index}.weight": torch.ones(10 - index, 11 - index) for index in range(10)}
    head = build_head("it", "v_head", weights, hidden_size=11)
    assert [layer.out_features for layer in head[::2]] == list(range(10, 0, -1))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "weights of an unsupported form: none at all"),
        ({"bias": torch.ones(1)}, "an unsupported form: bias"),
        ({"weight": ONE, "scale": ONE}, "an unsupported form: scale, weight"),
        ({"weight": ONE, "gate.weight": ONE}, "an unsupported form: gate.weight, weight"),
        ({"0.weight": WIDE, "3.weight": LAST}, "an unsupported form: 0.weight, 3.weight"),
        ({"0.weight": WIDE, "2.bias": ONE}, "an unsupported form: 0.weight, 2.bias"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\), but the model gives 4 numbers"),
        ({"weight": torch.ones(0, 4)}, r"weight has shape \(0, 4\)"),
        ({"weight": torch.ones(1, 5)}, r"weight has shape \(1, 5\), but the model gives 4 numbers"),
        ({"0.weight": WIDE, "2.weight": ONE}, r"2\.weight has shape \(1, 4\), but the model gives 8 numbers"),
        ({"weight": ONE, "bias": torch.ones(3)}, r"bias of v_head\.weight has shape \(3,\)"),
    ],
)
def test_weights_that_make_no_head_are_refused(weights, message):
    with pytest.raises(SourceError, match=message):
        build_head("it", "v_head", weights, hidden_size=4)
