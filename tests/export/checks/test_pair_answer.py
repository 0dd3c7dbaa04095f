"""What pairs say, in words: the rule that they speak for, the objection to another one, and what to give instead."""

import numpy as np

from plaudit_export.checks.pair_answer import Answer, Rule, answer

EXPORTED = Rule("text", ("as texts",), ("--recipe template",))
WITH_EOS = Rule("text", ("as texts, EOS at the end",), ("--recipe trl", "--append-eos"))
CHATS = Rule("chat", ("as chats", "as chats with the tokenizer's special tokens"), ("--recipe template",))
RIGHT, WRONG = np.full(200, 2.0), np.full(200, -2.0)


def said(*rules: tuple[Rule, np.ndarray], num_left_out: int = 0) -> Answer:
    names, margins = zip(*rules, strict=True)
    return answer(names, margins, 300, num_left_out)


def test_the_best_rule_comes_first_and_the_exported_one_is_marked():
    found = said((EXPORTED, WRONG), (WITH_EOS, RIGHT), num_left_out=3)
    assert [rule for rule, _ in found.ranked] == [WITH_EOS, EXPORTED]
    lines = found.describe().splitlines()
    assert lines[0] == "200 of 300 pairs (3 left out: with some rule, the model cannot take their texts)"
    assert lines[3].split() == ["100.0%", "2.0000", "-0.1269", *WITH_EOS.name.split()]
    assert lines[4].split() == ["0.0%", "-2.0000", "-2.1269", "2.0000", "±", "0.0000", "*", "as", "texts"]
    assert lines[5] == (
        "the checkpoint was evidently trained on such pairs as texts, EOS at the end (--recipe trl or --append-eos)"
    )


def test_the_objection_names_what_to_give():
    assert said((EXPORTED, WRONG), (WITH_EOS, RIGHT)).objection() == (
        "preference pairs show that another text rule is right: as texts, EOS at the end ranks 100.0% of "
        "200 pairs right, the "
        "rule of the export (as texts) 0.0%; give --recipe trl or --append-eos, or leave --pairs out"
    )


def test_where_the_pairs_are_better_in_another_form_that_is_what_to_give():
    objection = said((EXPORTED, WRONG), (CHATS, RIGHT)).objection()
    assert objection.endswith("; give the pairs as chats, or leave --pairs out")


def test_there_is_no_objection_to_a_rule_that_is_not_clearly_worse():
    assert said((WITH_EOS, RIGHT), (EXPORTED, WRONG)).objection() is None
    assert said((EXPORTED, RIGHT), (WITH_EOS, RIGHT)).objection() is None
    assert said((EXPORTED, RIGHT), (WITH_EOS, RIGHT)).verdict() == (
        "the pairs cannot tell by which rule the checkpoint was trained"
    )


def test_a_rule_that_ranks_no_more_than_chance_is_no_objection():
    less_wrong = np.full(200, -0.1)
    found = said((EXPORTED, WRONG), (WITH_EOS, less_wrong))
    assert (found.better, found.objection()) == (None, None)
    assert found.verdict().endswith("check that chosen and rejected are not swapped")


def test_pairs_that_repeat_others_are_told_of():
    first = answer([EXPORTED], [RIGHT], 300, 0, 100).describe().splitlines()[0]
    assert (
        first
        == "200 of 300 pairs (100 left out: one of their texts is also in another pair, or twice in the same pair)"
    )


def test_pairs_of_few_prompts_cannot_tell_and_speak_against_no_rule():
    few = answer([EXPORTED, WITH_EOS], [WRONG, RIGHT], 300, 0, num_prompts=9)
    assert few.evident is None
    assert few.objection() is None
    assert few.verdict().endswith("; they have only 9 prompts, give pairs with at least 10")
