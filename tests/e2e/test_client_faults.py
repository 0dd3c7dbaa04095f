"""What the client survives: real replicas that die, drain, come back, join, or keep silent. Every score once, in order,
with the bits of a run without faults."""

import asyncio
import itertools
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from replica_processes import ReplicaProcess, WatchedNetwork, free_port

from plaudit_client import RewardClient
from plaudit_client.errors import FingerprintMismatch
from plaudit_client.retry import RETRY_BUDGET_TOKENS, RETRY_COST_TOKENS, Timing
from plaudit_service import Scorer
from plaudit_service.bundles.bundle import Normalization
from plaudit_service.testing import score_by_hand

WORDS = ("good", "fine", "bad", "awful")
ITEMS = [" ".join(WORDS[number // 4**place % 4] for place in range(6)) for number in range(400)]
EXPECTED = [score_by_hand(text) for text in ITEMS]


def test_a_replica_that_is_killed_under_load_changes_no_score(tiny_bundle):
    bundle = tiny_bundle()
    with ReplicaProcess(bundle) as stays, ReplicaProcess(bundle) as dies:

        def kill_in_the_middle(number):
            if number == 20:
                dies.send(signal.SIGKILL)

        urls = [stays.url, dies.url]
        with RewardClient(urls, max_items_per_request=4, transport=WatchedNetwork(kill_in_the_middle)) as client:
            assert client.score(ITEMS).floats == EXPECTED
        assert dies.service.process.wait(30) == -signal.SIGKILL


def test_a_rolling_restart_of_two_replicas_fails_no_score(tiny_bundle):
    bundle = tiny_bundle()
    with ReplicaProcess(bundle) as first, ReplicaProcess(bundle) as second, ThreadPoolExecutor(1) as operator:

        def restart_both():
            for replica in (first, second):
                replica.end(signal.SIGTERM)
                replica.start()

        with RewardClient([first.url, second.url], max_items_per_request=4) as client:
            restart = operator.submit(restart_both)
            while not restart.done():
                assert client.score(ITEMS).floats == EXPECTED
            restart.result()
            while not (first.count_answers(200) and second.count_answers(200)):  # until both were taken back
                assert client.score(ITEMS).floats == EXPECTED
        assert first.exit_codes == second.exit_codes == [0]


def test_a_replica_with_another_reward_model_is_refused_and_the_others_go_on(tiny_bundle):
    other_bundle = tiny_bundle(normalization=Normalization(mean=1.0, std=2.0))
    port = free_port()
    with ReplicaProcess(tiny_bundle()) as right:
        settings = {"max_items_per_request": 50, "transport": WatchedNetwork()}
        with RewardClient([right.url, f"http://127.0.0.1:{port}"], **settings) as client:
            before = client.score(ITEMS)
            with ReplicaProcess(other_bundle, port=port) as wrong:
                client.wait_until_ready()
                scores = [client.score(ITEMS) for _ in range(20)]
                while wrong.count_answers(409) == 0:  # until the client has taken it back into use
                    scores.append(client.score(ITEMS))
                assert wrong.count_answers(200) == 0
            assert {(one.fingerprint, *one.floats) for one in scores} == {(before.fingerprint, *EXPECTED)}


def test_where_only_another_reward_model_is_left_the_call_fails(tiny_bundle):
    with (
        ReplicaProcess(tiny_bundle()) as wrong,
        RewardClient(wrong.url) as client,
        pytest.raises(FingerprintMismatch, match="sha256:other"),
    ):
        client.score(ITEMS, fingerprint="sha256:other")


def test_a_scorer_that_is_absent_at_the_start_and_in_the_middle_is_waited_for(tiny_bundle):
    refused = threading.Event()
    scorer = ReplicaProcess(tiny_bundle(), port=free_port())

    class Network(WatchedNetwork):
        async def send(self, request, address):
            try:
                return await super().send(request, address)
            except Exception:
                refused.set()
                raise

    client = RewardClient(scorer.url, timeout_s=120, max_items_per_request=4, transport=Network())
    with scorer.running, client, ThreadPoolExecutor(1) as trainer:
        call = trainer.submit(client.score, ITEMS)
        refused.wait(60)
        scorer.start()
        assert call.result().floats == EXPECTED

        refused.clear()
        scorer.end()
        call = trainer.submit(client.score, ITEMS)
        refused.wait(60)
        scorer.start()
        assert call.result().floats == EXPECTED


def test_a_replica_that_accepts_and_stays_silent_does_not_use_up_the_deadline(tiny_bundle):
    """The listening socket takes connections by itself; nobody ever reads from them."""
    timing = Timing(silence_s=0.2, probe_timeout_s=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, ReplicaProcess(tiny_bundle()) as works:
        urls = [f"http://127.0.0.1:{silent.getsockname()[1]}", works.url]
        with RewardClient(urls, timing=timing, timeout_s=120, max_items_per_request=4) as client:
            assert client.score(ITEMS).floats == EXPECTED


class HoldingNetwork(WatchedNetwork):
    """Holds back what one port answers to score requests, while there is something to hold."""

    def __init__(self, port):
        super().__init__()
        self._port = port
        self.num_to_hold = 0
        self.held = []

    async def send(self, request, address):
        response = await super().send(request, address)
        if self.num_to_hold and request.path == "/score" and f":{self._port}/" in request.url:
            self.num_to_hold -= 1
            self.held.append(request)
            await asyncio.Event().wait()
        return response


def test_with_hedging_requests_to_a_slow_replica_are_answered_by_an_idle_one(tiny_bundle):
    """The clock ticks with every look at it, so that a busy machine makes no request look slow."""
    bundle, ticks = tiny_bundle(), itertools.count()
    timing = Timing(clock=lambda: 0.1 * next(ticks))
    with ReplicaProcess(bundle) as fast, ReplicaProcess(bundle) as slow:
        network = HoldingNetwork(slow.port)
        settings = {"max_items_per_request": 5, "max_concurrency": 1, "timeout_s": 10_000, "transport": network}
        with RewardClient([fast.url, slow.url], hedge=True, timing=timing, **settings) as client:
            assert client.score(ITEMS).floats == EXPECTED
            num_requests = 2 * len(ITEMS) // 5
            network.num_to_hold = 3
            assert client.score(ITEMS).floats == EXPECTED
        assert len(network.held) == 3
        assert num_requests + 3 <= network.num_sent <= 1.05 * num_requests


def test_replicas_that_appear_and_disappear_behind_a_host_name_are_followed(tiny_bundle, monkeypatch):
    bundle, port = tiny_bundle(), free_port()
    addresses = ["127.0.0.1"]
    look_up = socket.getaddrinfo

    def look_up_scorer(host, *arguments, **options):
        if host != "scorer.test":
            return look_up(host, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up_scorer)
    now = [0.0]

    def half_a_minute_later():
        now[0] += 31

    with ReplicaProcess(bundle, port=port) as old:
        settings = {"timing": Timing(clock=lambda: now[0]), "max_items_per_request": 4, "timeout_s": 1000}
        with RewardClient(f"http://scorer.test:{port}", **settings) as client:
            assert client.score(ITEMS).floats == EXPECTED
            with ReplicaProcess(bundle, host="127.0.0.2", port=port) as new:
                addresses.append("127.0.0.2")
                half_a_minute_later()
                while new.count_answers(200) == 0:
                    assert client.score(ITEMS).floats == EXPECTED
                addresses.remove("127.0.0.1")
                half_a_minute_later()
                assert client.score(ITEMS).floats == EXPECTED
                old.end()
                assert client.score(ITEMS).floats == EXPECTED


@pytest.mark.slow
def test_20_000_items_over_three_replicas_that_are_killed_in_turn_have_the_bits_of_a_run_without_faults(causal_bundle):
    items = [f"number {n}: the egg boils {'not ' * (n * 7 % 23)}today" for n in range(19_000)]
    items += [{"prompt": f"Who is {n}?", "completions": [" Nobody.", f" It is {n} again."]} for n in range(1_000)]
    expected = Scorer(causal_bundle).score(items).floats
    done = threading.Event()
    network = WatchedNetwork()
    replicas = [ReplicaProcess(causal_bundle) for _ in range(3)]

    def kill_in_turn():
        for replica in itertools.cycle(replicas):
            replica.end(signal.SIGKILL)
            replica.start()
            if done.is_set():
                return

    with replicas[0], replicas[1], replicas[2], ThreadPoolExecutor(1) as killer:
        urls = [replica.url for replica in replicas]
        with RewardClient(urls, max_items_per_request=20, timeout_s=900, transport=network) as client:
            kills = killer.submit(kill_in_turn)
            num_calls = 0
            try:
                while num_calls == 0 or not (kills.done() or all(replica.exit_codes for replica in replicas)):
                    scores = client.score(items)
                    assert scores.floats == expected
                    assert all(score.ok for score in scores)
                    num_calls += 1
            finally:
                done.set()
            kills.result()
    assert all(replica.exit_codes for replica in replicas)  # each was killed at least once
    num_requests = num_calls * (-(-19_000 // 20) + 1_000 * 2 // 20)
    num_retries = network.num_sent - num_requests
    assert 0 < num_retries * RETRY_COST_TOKENS <= RETRY_BUDGET_TOKENS + num_requests
