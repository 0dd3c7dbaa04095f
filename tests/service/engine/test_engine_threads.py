import threading

import pytest

from plaudit_service.engine.engine_threads import WHOLE, EngineThreads

_PATIENCE_S = 60


class Jobs:
    """Jobs that tell their lanes and run until they may end."""

    def __init__(self, num_calls):
        self.threads = EngineThreads(num_calls)
        self.futures = {}
        self._began = {}
        self._gates = {}

    def submit(self, *names):
        for name in names:
            self._began[name], self._gates[name] = threading.Event(), threading.Event()
            self.futures[name] = self.threads.submit(lambda lane, name=name: self._run(name, lane))

    def _run(self, name, lane):
        self._began[name].set()
        assert self._gates[name].wait(_PATIENCE_S)
        return lane

    def wait_for(self, *names):
        for name in names:
            assert self._began[name].wait(_PATIENCE_S)

    def has_begun(self, name):
        return self._began[name].is_set()

    def end(self, name):
        self._gates[name].set()
        return self.futures[name].result(_PATIENCE_S)


def test_a_job_that_is_alone_has_the_whole_device_and_none_begins_beside_it():
    jobs = Jobs(2)
    assert jobs.threads.num_free == 2
    jobs.submit("first")
    jobs.wait_for("first")
    assert jobs.threads.num_free == 0
    jobs.submit("second", "third")
    assert not jobs.has_begun("second")
    assert jobs.end("first") == WHOLE
    jobs.wait_for("second", "third")
    assert {jobs.end("second"), jobs.end("third")} == {1, 2}
    jobs.threads.stop()


def test_what_comes_while_one_call_is_free_begins_at_once_on_another_share():
    jobs = Jobs(2)
    jobs.submit("whole")
    jobs.wait_for("whole")
    jobs.submit("a", "b")
    jobs.end("whole")
    jobs.wait_for("a", "b")
    jobs.end("a")
    assert jobs.threads.num_free == 1
    jobs.submit("c")
    jobs.wait_for("c")
    assert jobs.end("b") != jobs.end("c")
    jobs.threads.stop()


def test_eight_calls_at_once_never_share_a_lane():
    threads, lock, order, running, shared = EngineThreads(8), threading.Lock(), [], set(), []

    def job(number, lane):
        with lock:
            order.append(number)
            if lane in running or (running and WHOLE in {lane, *running}):
                shared.append((lane, set(running)))
            running.add(lane)
        with lock:
            running.discard(lane)

    futures = [threads.submit(lambda lane, number=number: job(number, lane)) for number in range(400)]
    for future in futures:
        future.result(_PATIENCE_S)
    assert shared == []
    assert sorted(order) == list(range(400))
    threads.stop()


def test_a_job_that_was_taken_back_is_not_run():
    jobs = Jobs(1)
    jobs.submit("first", "second", "third")
    jobs.wait_for("first")
    assert jobs.futures["second"].cancel()
    jobs.end("first")
    jobs.end("third")
    assert not jobs.has_begun("second")
    jobs.threads.stop()


def test_jobs_run_one_after_the_other_in_their_order():
    thread, order = EngineThreads(), []
    futures = [thread.submit(lambda _, number=number: order.append(number)) for number in range(20)]
    for future in futures:
        future.result(10)
    assert order == list(range(20))
    thread.stop()


def test_what_a_job_raises_belongs_to_the_one_who_waits_and_the_thread_lives():
    thread = EngineThreads()
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda _: 1 / 0).result(10)
    assert thread.submit(lambda _: 7).result(10) == 7
    thread.stop()


def test_it_tells_for_how_long_the_present_job_runs():
    thread, entered, gate = EngineThreads(), threading.Event(), threading.Event()

    def job(_):
        entered.set()
        return gate.wait(10)

    assert thread.busy_s == 0
    future = thread.submit(job)
    assert entered.wait(10)
    first = thread.busy_s
    assert thread.busy_s > first > 0
    gate.set()
    assert future.result(10)
    thread.submit(lambda _: None).result(10)
    thread.stop()


def test_a_job_that_hangs_does_not_keep_the_process_alive():
    thread = EngineThreads()
    is_daemon = thread.submit(lambda _: threading.current_thread().daemon).result(10)
    thread.stop()
    assert is_daemon


def test_it_has_ended_only_when_its_last_job_has():
    thread = EngineThreads()
    gate, entered = threading.Event(), threading.Event()
    job = thread.submit(lambda _: entered.set() or gate.wait())
    entered.wait()
    thread.stop()
    assert not thread.has_ended
    gate.set()
    assert job.result()
    for started in thread._threads:
        started.join()
    assert thread.has_ended
