import pytest

from plaudit_ppo.termination import Terminated, Termination


def signalled(termination):
    termination._on_signal(15, None)


def test_a_part_that_must_not_be_left_in_the_middle_is_left_at_its_end():
    termination, steps = Termination(), []

    def work():
        with termination.deferred(), termination.at_once(), termination.uninterrupted():
            signalled(termination)
            steps.append("to its end")
        steps.append("after it")

    with pytest.raises(Terminated):
        work()
    assert steps == ["to its end"]


def test_where_a_signal_is_deferred_such_a_part_defers_it_too():
    termination = Termination()
    with termination.deferred():
        with termination.uninterrupted():
            signalled(termination)
        assert termination.requested
