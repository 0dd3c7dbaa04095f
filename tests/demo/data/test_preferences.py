import math

import pytest

from plaudit_demo.data.preferences import Pair, best_accuracy, draw_pairs, sigmoid
from plaudit_demo.data.sampling import Completion

GOLD = {"good": 1.0, "bad": 0.0}


def completions(*texts, finished=True):
    return [Completion(text, finished, 1) for text in texts]


def draw(first, second, seed=1):
    prompts = [f"prompt {index}" for index in range(len(first))]
    return draw_pairs(prompts, first, second, lambda _, text: GOLD[text], seed=seed)


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others():
    first, second = completions(*["good"] * 100), completions(*["bad"] * 100)
    assert draw(first, second) == draw(first, second)
    assert draw(first, second) != draw(first, second, seed=2)


def test_the_better_completion_is_chosen_as_often_as_bradley_and_terry_say():
    pairs = draw(completions(*["good"] * 20_000), completions(*["bad"] * 20_000))
    share = sum(pair.chosen == "good" for pair in pairs) / len(pairs)
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)


def test_a_pair_carries_the_gold_rewards_of_its_own_completions():
    for pair in draw(completions(*["good"] * 20), completions(*["bad"] * 20)):
        assert (pair.chosen_gold, pair.rejected_gold) == (GOLD[pair.chosen], GOLD[pair.rejected])


def test_cut_completions_and_equal_texts_make_no_pair():
    first = completions("good", "good") + completions("good", finished=False)
    second = completions("bad", "good", "bad")
    assert [pair.prompt for pair in draw(first, second)] == ["prompt 0"]


def test_the_label_of_a_pair_does_not_depend_on_which_pairs_were_left_out():
    first, second = completions(*["good"] * 50), completions(*["bad"] * 50)
    all_pairs = {pair.prompt: pair for pair in draw(first, second)}
    fewer = draw(completions("good", finished=False) + first[1:], second)
    assert fewer == [all_pairs[f"prompt {index}"] for index in range(1, 50)]


def test_the_best_accuracy_is_the_mean_chance_that_the_judge_is_right():
    pairs = [Pair("p", "a", "b", 0.0, math.log(3)), Pair("p", "a", "b", 2.0, 2.0)]
    assert best_accuracy(pairs) == pytest.approx((0.75 + 0.5) / 2)


def test_sigmoid_does_not_overflow():
    assert (sigmoid(-1e4), sigmoid(0), sigmoid(1e4)) == (0, 0.5, 1)
