import threading

import pytest

from plaudit_service.engine.engine_thread import EngineThread


def test_jobs_run_one_after_the_other_in_their_order():
    thread, order = EngineThread(), []
    futures = [thread.submit(lambda number=number: order.append(number)) for number in range(20)]
    for future in futures:
        future.result(10)
    assert order == list(range(20))
    thread.stop()


def test_what_a_job_raises_belongs_to_the_one_who_waits_and_the_thread_lives():
    thread = EngineThread()
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda: 1 / 0).result(10)
    assert thread.submit(lambda: 7).result(10) == 7
    thread.stop()


def test_it_tells_for_how_long_the_present_job_runs():
    thread, entered, gate = EngineThread(), threading.Event(), threading.Event()

    def job():
        entered.set()
        return gate.wait(10)

    assert thread.busy_s == 0
    future = thread.submit(job)
    assert entered.wait(10)
    first = thread.busy_s
    assert thread.busy_s > first > 0
    gate.set()
    assert future.result(10)
    thread.submit(lambda: None).result(10)
    thread.stop()


def test_a_job_that_hangs_does_not_keep_the_process_alive():
    thread = EngineThread()
    is_daemon = thread.submit(lambda: threading.current_thread().daemon).result(10)
    thread.stop()
    assert is_daemon


def test_it_has_ended_only_when_its_last_job_has():
    thread = EngineThread()
    gate, entered = threading.Event(), threading.Event()
    job = thread.submit(lambda: entered.set() or gate.wait())
    entered.wait()
    thread.stop()
    assert not thread.has_ended
    gate.set()
    assert job.result()
    thread._thread.join()
    assert thread.has_ended
