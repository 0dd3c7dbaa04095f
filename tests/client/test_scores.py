import math
import pickle
from collections.abc import Sequence

import pytest

from plaudit_client.errors import InvalidArgument
from plaudit_client.scores import Best, Score, Scores, best_of

OK = Score("ok", 1.5, 3)
TOO_LONG = Score("too_long", None, 9000, detail="9000 tokens, limit 4096")
SCORES = Scores((OK, TOO_LONG), "rm", "sha256:1", "cpu")


def test_scores_are_a_sequence_in_order():
    assert isinstance(SCORES, Sequence)
    assert list(SCORES) == [OK, TOO_LONG]
    assert (len(SCORES), SCORES[1], SCORES[:1]) == (2, TOO_LONG, (OK,))


def test_a_sequence_without_a_score_is_nan_and_never_a_number():
    first, second = SCORES.floats
    assert first == 1.5
    assert math.isnan(second)


def test_only_the_status_ok_is_ok():
    assert OK.ok
    assert not TOO_LONG.ok


def test_scores_survive_pickling():
    assert pickle.loads(pickle.dumps(SCORES)) == SCORES  # noqa: S301  our own bytes


def of(*values):
    return [Score("failed" if value is None else "ok", value) for value in values]


def test_the_best_completion_of_each_group_is_the_first_with_the_highest_score():
    items = [{"prompt": "p", "completions": ["a", "b", "c"]}, {"messages": [], "completions": ["d"]}]
    assert best_of(items, of(1.0, 3.0, 3.0, -2.0)) == [Best("b", 1, 3.0), Best("d", 0, -2.0)]


def test_a_completion_without_a_score_is_never_the_best():
    items = [{"prompt": "p", "completions": ["a", "b"]}, {"prompt": "p", "completions": ["c"]}]
    assert best_of(items, of(None, -5.0, None)) == [Best("b", 1, -5.0), None]


@pytest.mark.parametrize("item", ["text", {"text": "t"}, {"prompt": "p", "completions": []}])
def test_an_item_without_completions_has_no_best_one(item):
    with pytest.raises(InvalidArgument, match=r"items\[0\]: no completions"):
        best_of([item], of(1.0))


def test_the_scores_must_be_those_of_the_items():
    with pytest.raises(InvalidArgument, match="got 1 for 2 completions"):
        best_of([{"prompt": "p", "completions": ["a", "b"]}], of(1.0))
