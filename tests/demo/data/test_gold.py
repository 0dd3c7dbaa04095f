import pytest

from plaudit_demo.data.gold import Gold, gold_reward, gold_terms

PROMPT = "A review of a hotel in Oban, about the bar and the bed:"


def length_term(words):
    return -(((words - 26) / 13) ** 2)


def test_very_intensifies_an_opinion_and_not_reverses_it():
    gold = gold_terms(PROMPT, " The view was very clean. The pool was not awful, but the room was small.")
    assert gold.opinion == pytest.approx(1.5 * 0.5 + 0.9 - 0.3)


def test_only_what_was_asked_for_counts_as_topic_and_counts_once():
    assert gold_terms(PROMPT, " The bar, the bar, the bed, the pool.").topic == pytest.approx(2 * 0.6)
    assert gold_terms(PROMPT, " The pool.").topic == 0


def test_each_further_use_of_a_word_costs_more_than_the_one_before():
    costs = [gold_terms(PROMPT, " the bed was clean." * uses).repetition for uses in (1, 2, 3, 4)]
    assert costs == pytest.approx([0, -0.2 * 1, -0.2 * 8, -0.2 * 27])


def test_a_word_said_twice_in_a_row_costs_whatever_word_it_is():
    assert gold_terms(PROMPT, " The the bed was was clean.").repetition == pytest.approx(-0.5 * 2)


def test_the_best_length_is_26_words():
    assert gold_terms(PROMPT, " word and" * 13).length == 0
    assert gold_terms(PROMPT, "").length == pytest.approx(length_term(0))
    assert gold_terms(PROMPT, " word and" * 26).length == pytest.approx(length_term(52))


def test_the_gold_reward_of_a_review_is_the_sum_done_by_hand():
    review = " The bar was very clean. The bar was not awful, and the view was was clean."
    assert gold_terms(PROMPT, review) == Gold(
        opinion=pytest.approx(0.75 + 0.9 + 0.5),
        topic=pytest.approx(0.6),
        repetition=pytest.approx(-0.2 - 0.5),
        length=pytest.approx(length_term(16)),
    )
    assert gold_reward(PROMPT, review) == pytest.approx(2.15 + 0.6 - 0.7 - (10 / 13) ** 2)


def test_praise_without_end_is_worth_less_than_a_review():
    review = " The bar was wonderful, and the bed was clean. The room was very quiet. We found the garden lovely."
    assert gold_reward(PROMPT, " wonderful" * 13) < -100 < 3 < gold_reward(PROMPT, review)
