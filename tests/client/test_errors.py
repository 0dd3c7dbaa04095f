import inspect
import pickle
import re

import pytest

from plaudit_client import errors

KINDS = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_with_all_that_it_knows(kind):
    error = kind("POST http://a/score: what happened")
    error.attempts = 3
    for name, value in {"status": 429, "retry_after_s": 2.5, "problem_type": "urn:x", "detail": "y"}.items():
        if hasattr(error, name):
            setattr(error, name, value)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert type(copy) is kind
    assert str(copy) == str(error) == "POST http://a/score: what happened (after 3 attempts)"
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_one_of_the_tree_that_the_docstring_draws(kind):
    assert issubclass(kind, errors.PlauditError)
    assert re.search(rf"\b{kind.__name__}\b", inspect.getdoc(errors))


def test_the_number_of_attempts_is_told_only_when_there_were_several():
    assert str(errors.ConnectionFailed("refused")) == "refused"


def test_a_wrong_argument_is_a_value_error_too():
    assert issubclass(errors.InvalidArgument, ValueError)
