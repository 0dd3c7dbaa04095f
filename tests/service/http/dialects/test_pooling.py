"""vLLM's /pooling with token_classify, in the shape of vLLM 0.32."""

import json

import pytest

from plaudit_service.errors import InvalidRequest
from plaudit_service.http.dialects import vllm
from plaudit_service.http.dialects.dialect import Answered, Chosen
from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.items import ChatItem, Message, TextItem, TokenItem

STEPS = Chosen("prm", ("LABEL_0", "LABEL_1"), steps=True, good=(False, True))


def read(**body):
    return vllm.POOLING.read(json.dumps(body).encode(), {}, KnownTokens())


def answered(model, *along):
    return Answered(model, [values[-1] for values in along], [3] * len(along), "abc", 1_700_000_000, along=along)


def test_a_process_reward_model_gives_a_row_of_both_labels_for_each_step():
    asked = read(model="prm", input=["a", "b"], task="token_classify", encoding_format="float")
    assert asked.items == [TextItem(text="a", finished=False), TextItem(text="b", finished=False)]
    assert asked.along(STEPS) == "steps"
    asked.check(STEPS)
    assert asked.write(answered(STEPS, [0.75, 0.5], [0.25])) == {
        "id": "pool-abc",
        "object": "list",
        "created": 1_700_000_000,
        "model": "prm",
        "data": [
            {"index": 0, "object": "pooling", "data": [[0.25, 0.75], [0.5, 0.5]]},
            {"index": 1, "object": "pooling", "data": [[0.75, 0.25]]},
        ],
        "usage": {"prompt_tokens": 6, "total_tokens": 6, "completion_tokens": 0},
    }


def test_any_other_model_gives_a_row_of_one_label_for_each_token_activated_unless_that_is_refused():
    asked = read(input=[1, 2])
    assert asked.items == [TokenItem(token_ids=[1, 2])]
    assert asked.along(Chosen("rm")) == "tokens"
    assert asked.raw
    assert asked.write(answered(Chosen("rm"), [0.0, 0.0]))["data"][0]["data"] == [[0.5], [0.5]]
    asked = read(messages=[{"role": "user", "content": "a"}], use_activation=False)
    assert asked.items == [ChatItem(messages=[Message(role="user", content="a")], finished=False)]
    assert asked.raw is None
    assert asked.write(answered(Chosen("rm"), [2.0, -3.0]))["data"][0]["data"] == [[2.0], [-3.0]]


@pytest.mark.parametrize("body", [{"task": "embed"}, {"encoding_format": "base64"}, {"dimensions": 3}])
def test_what_would_change_the_answer_of_vllm_is_refused(body):
    with pytest.raises(InvalidRequest):
        read(input="a", **body)


def test_a_probability_is_neither_a_logit_nor_a_class_and_several_outputs_are_no_label():
    with pytest.raises(InvalidRequest, match="already gives each step a probability; leave use_activation out"):
        read(input="a", use_activation=False).check(STEPS)
    with pytest.raises(InvalidRequest, match="would return each output at each token"):
        read(input="a").check(Chosen("rm", ("helpful", "harmless")))
    classify = vllm.CLASSIFY.read(b'{"input": "a"}', {}, KnownTokens())
    with pytest.raises(InvalidRequest, match="not the logit of a class; use /pooling"):
        classify.check(STEPS)
