import math
import pickle
from collections.abc import Sequence

from plaudit_client.scores import Score, Scores

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
