import copy
import dataclasses
import json

import pytest
import torch
from tiny_trainer import tiny_tokenizer

from plaudit_ppo.engine.completions import (
    AnswerError,
    Completion,
    Sampling,
    completion_request,
    parse_completion,
    rollout_seed,
    to_rollouts,
)
from plaudit_ppo.rollout.completion_text import StopStrings

SAMPLING = Sampling(temperature=0.7, max_tokens=3, eos_ids=(0, 9), vocabulary=32)
ANSWER = {"prompt_token_ids": [4, 5], "token_ids": [6, 7, 9], "finish_reason": "stop"}
ANSWER |= {"logprobs": {"token_logprobs": [-1.0, -0.5, -2.0]}}


def answered(**changes):
    return json.dumps({"choices": [copy.deepcopy(ANSWER) | changes]}).encode()


def test_a_request_leaves_nothing_to_the_defaults_of_a_server():
    request = completion_request([4, 5], SAMPLING, model="policy", seed=3)
    assert request["temperature"] == 0.7 + 1e-7  # as in all passes
    assert (request["top_p"], request["top_k"], request["min_p"], request["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert (request["ignore_eos"], request["stop_token_ids"]) == (True, [0, 9])  # what ends it is the trainer's to say
    assert (request["prompt"], request["seed"], request["max_tokens"], request["n"]) == ([4, 5], 3, 3, 1)


def test_an_answer_is_a_completion_that_ended_or_one_that_was_cut():
    assert parse_completion(answered(), [4, 5], SAMPLING) == Completion([6, 7, 9], [-1.0, -0.5, -2.0], finished=True)
    cut = answered(token_ids=[6, 7, 8], finish_reason="length")
    assert parse_completion(cut, [4, 5], SAMPLING) == Completion([6, 7, 8], [-1.0, -0.5, -2.0], finished=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt_token_ids": [4]}, "another prompt"),
        ({"token_ids": None}, "no token ids"),
        ({"token_ids": []}, "no token ids"),
        ({"token_ids": [6, True, 9]}, "no token ids"),
        ({"token_ids": [6, 32, 9]}, "token 32, and the policy's vocabulary ends at 31"),
        ({"token_ids": [6, -1, 9]}, "vocabulary"),
        ({"token_ids": [0, 7, 9]}, "2 of them an EOS"),
        ({"token_ids": [6, 7, 8]}, "finish_reason is 'stop'"),
        ({"token_ids": [6, 7, 8, 9]}, "it has 4 tokens of 3"),
        ({"finish_reason": "length"}, "1 of them an EOS, and its finish_reason is 'length'"),
        ({"finish_reason": "abort"}, "finish_reason is 'abort'"),
        ({"token_ids": [6, 7], "finish_reason": "length"}, "it has 2 tokens of 3"),
        ({"logprobs": None}, "a logprob for each token"),
        ({"logprobs": {"token_logprobs": [-1.0, -0.5]}}, "a logprob for each token"),
        ({"logprobs": {"token_logprobs": [-1.0, None, -2.0]}}, "a logprob for each token"),
        ({"logprobs": {"token_logprobs": [-1.0, float("nan"), -2.0]}}, "a logprob for each token"),
    ],
)
def test_an_answer_that_is_no_completion_of_the_prompt_is_none(changes, says):
    with pytest.raises(AnswerError, match=says):
        parse_completion(answered(**changes), [4, 5], SAMPLING)


STOPPING = dataclasses.replace(SAMPLING, stop=StopStrings([" w7", "w9"], tiny_tokenizer()))


def test_an_engine_is_told_the_stop_strings_and_the_trainer_says_where_a_completion_ends():
    """Detail 36: with the token that brings one to its end, whatever the engine has sampled behind it."""
    request = completion_request([4, 5], STOPPING, model="policy", seed=3)
    assert (request["stop"], request["include_stop_str_in_output"]) == ([" w7", "w9"], True)
    assert request["skip_special_tokens"] is False  # a stop string may be one
    assert "stop" not in completion_request([4, 5], SAMPLING, model="policy", seed=3)
    for ids, reason in (([6, 7], "stop"), ([6, 7, 8], "stop"), ([6, 7, 8], "length"), ([6, 7, 0], "stop")):
        logprobs = {"token_logprobs": [-1.0, -0.5, -2.0][: len(ids)]}
        answer = answered(token_ids=ids, finish_reason=reason, logprobs=logprobs)
        assert parse_completion(answer, [4, 5], STOPPING) == Completion([6, 7], [-1.0, -0.5], finished=True)
    assert parse_completion(answered(), [4, 5], dataclasses.replace(STOPPING, eos_ids=(9,))).ids == [6, 7]
    ended = answered(token_ids=[6, 8, 0])
    assert parse_completion(ended, [4, 5], STOPPING) == Completion([6, 8, 0], [-1.0, -0.5, -2.0], finished=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"token_ids": [6, 8, 8]}, "finish_reason is 'stop'"), ({"token_ids": [0, 7, 8]}, "1 of them an EOS")],
)
def test_an_engine_that_stops_where_there_is_no_stop_string_gives_no_completion(changes, says):
    with pytest.raises(AnswerError, match=says):
        parse_completion(answered(**changes), [4, 5], STOPPING)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"choices": []}', b'{"choices": [1]}', b"[" * 100_000])
def test_what_is_no_answer_at_all_is_none(body):
    with pytest.raises(AnswerError, match=r"it is not JSON with choices|not exactly one choice"):
        parse_completion(body, [4, 5], SAMPLING)


def test_a_seed_depends_on_run_iteration_and_place_alone():
    places = [(seed, iteration, place) for seed in (0, 1) for iteration in (-1, 0, 1) for place in range(4)]
    assert len({rollout_seed(*place) for place in places}) == len(places)
    assert rollout_seed(1, 2, 3) == 7123612760556101210


def test_prompts_are_padded_left_and_completions_right():
    completions = [Completion([7, 9], [-1.0, -2.0], finished=True), Completion([6, 6, 6], [-3.0] * 3, finished=False)]
    rollouts = to_rollouts([[4, 5, 6], [8]], completions, pad_id=1, device=torch.device("cpu"))
    assert rollouts.prompt_ids.tolist() == [[4, 5, 6], [1, 1, 8]]
    assert rollouts.prompt_mask.tolist() == [[True, True, True], [False, False, True]]
    assert rollouts.completion_ids.tolist() == [[7, 9, 1], [6, 6, 6]]
    assert rollouts.completion_mask.tolist() == [[True, True, False], [True, True, True]]
    assert rollouts.finished.tolist() == [True, False]
    assert rollouts.sampled_logprobs.tolist() == [[-1.0, -2.0, 0.0], [-3.0, -3.0, -3.0]]
