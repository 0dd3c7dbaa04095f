import asyncio
import gc
import itertools
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from plaudit_client import AsyncRewardClient, RewardClient
from plaudit_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    FingerprintChanged,
    FingerprintMismatch,
    InvalidAnswer,
    InvalidArgument,
    PlauditError,
    ServiceUnavailable,
    Unauthorized,
)
from plaudit_client.fleet import cancel
from plaudit_client.retry import Timing
from plaudit_client.testing import FakeService, FakeTransport, json_response
from plaudit_client.transport import HttpResponse

URL = "http://fake"


def length(item):
    return float(len(item["text"]))


def score_sync(items, options=None, url=URL, **settings):
    with RewardClient(url, **settings) as client:
        return client.score(items, **(options or {}))


def score_async(items, options=None, url=URL, **settings):
    async def run():
        async with AsyncRewardClient(url, **settings) as client:
            return await client.score(items, **(options or {}))

    return asyncio.run(run())


both = pytest.mark.parametrize("score", [score_sync, score_async])


class Script(FakeTransport):
    """Answers POST /score with one prepared response, exception or transport after the other; the last one stays."""

    def __init__(self, *steps):
        super().__init__(self._next)
        self.steps = list(steps)
        self.requests = []

    def _next(self, request):
        if request.path != "/score":
            return HttpResponse(404, {}, b"")
        self.requests.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step.answer(request) if hasattr(step, "answer") else step


# What both clients do


@both
def test_scores_come_back_in_the_callers_order(score):
    service = FakeService(length, max_sequences_per_request=2)
    scores = score(["a" * size for size in range(1, 8)], transport=service)
    assert scores.floats == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert (scores.model, scores.fingerprint, scores.engine) == ("fake", "sha256:fake", "fake")
    assert [request.path for request in service.requests] == ["/info"] + ["/score"] * 4


@both
def test_a_group_gives_one_score_per_completion_in_place(score):
    service = FakeService(lambda item: float(item.get("completion", item.get("text"))))
    items = ["1", {"prompt": "p", "completions": ["2", "3"]}, {"text": "4"}]
    assert score(items, transport=service).floats == [1.0, 2.0, 3.0, 4.0]


@both
def test_a_failed_sequence_has_a_status_and_no_number(score):
    scores = score(["a", "b"], transport=FakeService(lambda item: "too_long" if item["text"] == "b" else 1.0))
    assert [result.status for result in scores] == ["ok", "too_long"]
    assert scores[1].score is None


@both
def test_no_items_are_no_request(score):
    service = FakeService(length)
    assert list(score([], transport=service)) == []
    assert service.requests == []


@both
def test_options_key_and_deadline_are_sent(score):
    service = FakeService(length)
    options = {"model": "fake", "truncation": "left", "raw": True, "fingerprint": "sha256:fake", "engine": "fake"}
    score(["a"], options, transport=service, api_key="secret", timeout_s=5.0)
    request = service.requests[-1]
    assert json.loads(request.body) == options | {"items": [{"text": "a"}]}
    assert request.headers["Authorization"] == "Bearer secret"
    assert 4.0 < float(request.headers["X-Request-Timeout-S"]) <= 5.0
    assert len(request.headers["X-Request-Id"]) == 32


@both
def test_what_passes_is_retried_until_there_is_an_answer(score, fake_time):
    transport = Script(
        ConnectionFailed("refused", connected=False),
        ConnectionFailed("reset"),
        json_response({}, 503, {"retry-after": "7"}),
        HttpResponse(502, {}, b"<html>"),
        FakeService(length),
    )
    assert score(["abc"], transport=transport, timing=fake_time.timing).floats == [3.0]
    assert fake_time.slept == [0.125, 0.25, 7.0, 1.0]
    assert len({request.headers["X-Request-Id"] for request in transport.requests}) == 1


@both
@pytest.mark.parametrize("status", [400, 401, 409, 413, 422, 501])
def test_a_refusal_is_not_retried(score, status, fake_time):
    transport = Script(json_response({"detail": "no"}, status))
    with pytest.raises(PlauditError, match=f"status {status}: no$"):
        score(["a"], transport=transport, timing=fake_time.timing)
    assert len(transport.requests) == 1


@both
def test_the_last_failure_is_raised_when_retries_are_used_up(score, fake_time):
    transport = Script(json_response({"detail": "queue full"}, 429))
    with pytest.raises(ServiceUnavailable, match=r"status 429: queue full \(after 3 attempts\)") as caught:
        score(["a"], transport=transport, timing=fake_time.timing, max_retries=2)
    assert (caught.value.status, caught.value.attempts) == (429, 3)


@both
def test_no_retry_begins_after_the_total_deadline(score, fake_time):
    transport = Script(json_response({}, 503, {"retry-after": "20"}))
    with pytest.raises(ServiceUnavailable):
        score(["a"], transport=transport, timing=fake_time.timing, timeout_s=50.0)
    assert fake_time.slept == [20.0, 20.0]
    assert [float(request.headers["X-Request-Timeout-S"]) for request in transport.requests] == [50.0, 30.0, 10.0]


@both
@pytest.mark.parametrize("urls", [URL, "http://a,http://b"])
def test_a_service_that_is_absent_for_60_seconds_is_waited_for(score, urls, fake_time):
    service = FakeService(length)
    back = fake_time.now + 60.0

    def answer(request):
        if fake_time.now < back:
            raise ConnectionFailed("refused", connected=False)
        return service.answer(request)

    assert score(
        ["abc"], transport=FakeTransport(answer), timing=fake_time.timing, url=urls, timeout_s=120.0
    ).floats == [3.0]
    assert back <= fake_time.now < back + 5.0


@both
def test_the_timeout_of_one_call_wins_over_the_clients(score, fake_time):
    transport = Script(json_response({}, 503, {"retry-after": "20"}))
    with pytest.raises(ServiceUnavailable):
        score(["a"], {"timeout_s": 10.0}, transport=transport, timing=fake_time.timing)
    assert fake_time.slept == []


@both
def test_requests_take_turns_and_a_retry_goes_to_another_replica_at_once(score, fake_time):
    hosts = []

    def answer(request):
        hosts.append(urlsplit(request.url).netloc + request.path)
        if urlsplit(request.url).netloc == "b":
            raise ConnectionFailed("refused", connected=False)
        return FakeService(length).answer(request)

    settings = {"transport": FakeTransport(answer), "timing": fake_time.timing, "max_concurrency": 1}
    scores = score(["a", "b"], url="http://a,http://b,http://c", max_items_per_request=1, **settings)
    assert scores.floats == [1.0, 1.0]
    requests = [host for host in hosts if not host.endswith("/readyz")]
    assert requests == ["a/info", "b/score", "c/score", "a/score"]


@both
def test_an_explicit_number_of_items_wins_over_the_services_limit(score):
    service = FakeService(length, max_sequences_per_request=4)
    score(["a"] * 4, transport=service, max_items_per_request=2)
    assert [request.path for request in service.requests] == ["/info", "/score", "/score"]


@both
def test_a_service_without_info_gets_256_sequences_per_request(score):
    transport = Script(FakeService(length))
    score(["a"] * 300, transport=transport)
    assert sorted(len(json.loads(request.body)["items"]) for request in transport.requests) == [44, 256]


@both
def test_one_failed_part_fails_the_call_and_names_its_items(score):
    def judge(request):
        if request.path == "/score" and b"bad" in request.body:
            return json_response({"detail": "items[0]: no"}, 422)
        return FakeService(length, max_sequences_per_request=2).answer(request)

    with pytest.raises(PlauditError, match=r"items\[2\] to items\[3\] .* items\[0\]: no"):
        score(["a", "a", "bad", "a", "a"], transport=FakeTransport(judge))


@both
def test_no_more_requests_are_in_flight_than_allowed(score):
    in_flight, peak = 0, 0

    async def answer(request):
        nonlocal in_flight, peak
        in_flight += 1
        peak = max(peak, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1
        return FakeService(length).answer(request)

    transport = FakeTransport(answer)
    assert score(["a"] * 12, transport=transport, max_items_per_request=1, max_concurrency=3).floats == [1.0] * 12
    assert peak == 3


@both
@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b'{"results": [NaN]}'])
def test_an_unusable_answer_is_a_typed_error_and_not_retried(score, body):
    transport = Script(HttpResponse(200, {}, body))
    with pytest.raises(InvalidAnswer):
        score(["a"], transport=transport)
    assert len(transport.requests) == 1


@both
def test_a_wrong_key_is_unauthorized(score):
    with pytest.raises(Unauthorized):
        score(["a"], transport=Script(json_response({"detail": "no"}, 401)))


# Pinning


def test_the_first_answer_pins_fingerprint_and_engine_in_later_requests():
    service = FakeService(length)
    with RewardClient(URL, transport=service) as client:
        client.score(["a"])
        client.score(["b"])
    first, second = (json.loads(request.body) for request in service.requests[1:])
    assert "fingerprint" not in first
    assert (second["fingerprint"], second["engine"]) == ("sha256:fake", "fake")


def test_a_service_that_changed_its_reward_model_is_refused():
    transport = Script(FakeService(length), FakeService(length, fingerprint="sha256:other"))
    with RewardClient(URL, transport=transport) as client:
        client.score(["a"])
        with pytest.raises(FingerprintMismatch, match="sha256:other"):
            client.score(["b"])


def ignore_pins(service):
    """A transport that leaves out what the request pins."""

    def answer(request):
        body = json.loads(request.body)
        bare = {key: value for key, value in body.items() if key not in {"fingerprint", "engine"}}
        return service.answer(replace(request, body=json.dumps(bare).encode()))

    return FakeTransport(answer)


@pytest.mark.parametrize("change", [{"fingerprint": "sha256:other"}, {"engine": "gpu"}])
def test_an_answer_of_another_reward_model_or_engine_is_refused_even_where_the_service_ignores_the_pin(change):
    transport = Script(FakeService(length), ignore_pins(FakeService(length, **change)))
    with RewardClient(URL, transport=transport) as client:
        client.score(["a"])
        with pytest.raises(FingerprintChanged):
            client.score(["b"])


def test_the_parts_of_the_first_call_must_agree_too():
    transport = Script(FakeService(length), FakeService(length, fingerprint="sha256:other"))
    with (
        RewardClient(URL, transport=transport, max_items_per_request=1, pin=False) as client,
        pytest.raises(FingerprintChanged),
    ):
        client.score(["a", "b"])


def test_a_first_call_that_is_overtaken_by_another_answer_is_refused():
    async def run():
        both_sent = asyncio.Barrier(2)
        services = [FakeService(length), FakeService(length, fingerprint="sha256:other")]

        async def answer(request):
            if request.path != "/score":
                return HttpResponse(404, {}, b"")
            service = services.pop()
            await both_sent.wait()
            return service.answer(request)

        async with AsyncRewardClient(URL, transport=FakeTransport(answer)) as client:
            return await asyncio.gather(client.score(["a"]), client.score(["b"]), return_exceptions=True)

    outcomes = asyncio.run(run())
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["FingerprintChanged", "Scores"]


def test_without_pinning_a_changed_reward_model_is_accepted():
    transport = Script(FakeService(length), FakeService(length, fingerprint="sha256:other"))
    with RewardClient(URL, transport=transport, pin=False) as client:
        assert client.score(["a"]).fingerprint == "sha256:fake"
        assert client.score(["b"]).fingerprint == "sha256:other"


# Several replicas


class Hosts(FakeTransport):
    """A fake service per host name; `faults` maps a host to what answers its score requests instead."""

    def __init__(self, **faults):
        super().__init__(self.choose)
        self.faults = faults
        self.seen = []
        self.not_ready = set()
        self.service = FakeService(lambda item: float(len(item.get("completion", item.get("text")))))

    def choose(self, request):
        host = urlsplit(request.url).netloc
        self.seen.append((host, request.path, request.body))
        if request.path == "/readyz" and host in self.not_ready:
            return json_response({"detail": "not yet"}, 503)
        fault = self.faults.get(host)
        return fault(request) if fault and request.path == "/score" else self.service.answer(request)

    def count(self, host, path="/score"):
        return sum((host, path) == (seen_host, seen_path) for seen_host, seen_path, _ in self.seen)


def refuse(request):
    raise ConnectionFailed("Connection refused", connected=False)


def busy(request):
    return json_response({"detail": "queue full"}, 429, {"retry-after": "7"})


def unlike(request):
    return json_response({"detail": "another fingerprint"}, 409)


@both
def test_a_big_call_is_shared_among_the_replicas(score):
    hosts = Hosts()
    assert len(score(["a"] * 120, url="http://a,http://b,http://c", transport=hosts)) == 120
    assert {host: hosts.count(host) for host in "abc"} == {"a": 1, "b": 1, "c": 1}


@both
def test_a_small_call_stays_one_request(score):
    hosts = Hosts()
    score(["a"] * 32, url="http://a,http://b,http://c", transport=hosts)
    assert sum(hosts.count(host) for host in "abc") == 1


@both
def test_the_completions_of_a_prompt_go_to_one_replica(score):
    hosts = Hosts()
    group = {"prompt": "p", "completions": ["a"] * 50}
    assert score([group, group], url="http://a,http://b", transport=hosts).floats == [1.0] * 100
    bodies = [json.loads(body) for _, path, body in hosts.seen if path == "/score"]
    assert [[len(item["completions"]) for item in body["items"]] for body in bodies] == [[50], [50]]


@both
def test_a_replica_that_refuses_connections_gets_nothing_more_until_a_probe_finds_it_ready(score, fake_time):
    hosts = Hosts(a=refuse)
    hosts.not_ready.add("a")
    settings = {"transport": hosts, "timing": fake_time.timing, "max_items_per_request": 1, "max_concurrency": 1}
    assert score(["a"] * 20, url="http://a,http://b", **settings).floats == [1.0] * 20
    assert (hosts.count("a"), hosts.count("b")) == (1, 20)
    assert hosts.count("a", "/readyz") > 0


def test_an_ejected_replica_is_probed_by_one_task_and_taken_back(fake_time):
    async def run():
        hosts = Hosts(a=refuse)
        hosts.not_ready.add("a")
        probed = 0

        async def sleep(seconds):
            nonlocal probed
            probed += 1
            if probed == 3:
                hosts.not_ready.clear()
                hosts.faults.clear()
            await asyncio.sleep(0)

        settings = {"max_items_per_request": 1, "timing": replace(fake_time.timing, sleep=sleep)}
        async with AsyncRewardClient("http://a,http://b", transport=hosts, **settings) as client:
            await client.score(["a"] * 16)
            while hosts.count("a", "/readyz") < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            hosts.seen.clear()
            await client.score(["a"] * 16)
        return hosts.count("a"), hosts.count("a", "/readyz")

    num_scored, num_probes = asyncio.run(run())
    assert num_scored == 8
    assert num_probes == 0


@both
def test_one_busy_replica_is_not_waited_for_while_another_is_there(score, fake_time):
    hosts = Hosts(a=busy)
    settings = {"transport": hosts, "timing": fake_time.timing, "max_items_per_request": 1, "max_concurrency": 1}
    assert score(["a"] * 9, url="http://a,http://b", **settings).floats == [1.0] * 9
    assert fake_time.slept == [0.125]  # a backoff, not the 7 s that the busy one asks for
    assert hosts.count("a") == 1  # and then it is left in peace for those


@both
def test_a_replica_with_another_reward_model_is_passed_by(score):
    hosts = Hosts(a=unlike)
    settings = {"transport": hosts, "max_items_per_request": 1, "max_concurrency": 1, "max_retries": 0}
    options = {"fingerprint": "sha256:fake"}
    assert score(["a"] * 9, options, url="http://a,http://b", **settings).floats == [1.0] * 9
    assert (hosts.count("a"), hosts.count("b")) == (1, 9)


@both
def test_where_all_replicas_have_another_reward_model_the_call_fails(score):
    hosts = Hosts(a=unlike, b=unlike)
    with pytest.raises(FingerprintMismatch):
        score(["a"], {"fingerprint": "sha256:other"}, url="http://a,http://b", transport=hosts)
    assert (hosts.count("a"), hosts.count("b")) == (1, 1)


@both
def test_retries_end_when_the_clients_budget_is_spent(score, fake_time):
    hosts = Hosts(a=lambda request: json_response({"detail": "broken"}, 500))
    with pytest.raises(ServiceUnavailable, match=r"broken .*retry budget is spent") as caught:
        score(["a"], url="http://a", transport=hosts, timing=fake_time.timing, timeout_s=10_000)
    assert caught.value.attempts == 101  # 500 tokens, one back for /info that was already full


@both
def test_a_silent_replica_is_asked_whether_it_lives_and_left_for_another(score):
    async def never(request):
        await asyncio.Event().wait()

    class Silent(Hosts):
        def choose(self, request):
            answer = super().choose(request)
            return never(request) if request.url.startswith("http://a") else answer

    hosts = Silent()
    timing = Timing(silence_s=0.01, probe_timeout_s=0.01)
    assert score(["abc"], url="http://a,http://b", transport=hosts, timing=timing, timeout_s=60).floats == [3.0]
    assert hosts.count("a", "/healthz") == 1


@both
def test_a_slow_replica_that_lives_is_waited_for(score):
    async def slow(request):
        while hosts.count("a", "/healthz") + hosts.count("b", "/healthz") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return hosts.service.answer(request)

    hosts = Hosts(a=slow, b=slow)
    timing = Timing(silence_s=0.01)
    assert score(["abc"], url="http://a,http://b", transport=hosts, timing=timing, timeout_s=60).floats == [3.0]
    assert hosts.count("a") + hosts.count("b") == 1


@both
def test_an_only_replica_is_waited_for_however_silent(score):
    async def slow(request):
        await asyncio.sleep(0.05)
        return hosts.service.answer(request)

    hosts = Hosts(a=slow)
    timing = Timing(silence_s=0.01, probe_timeout_s=0.01)
    assert score(["abc"], url="http://a", transport=hosts, timing=timing).floats == [3.0]
    assert hosts.count("a", "/healthz") == 0


def test_host_names_are_looked_up_again_and_new_addresses_used():
    async def run():
        now, addresses, used = [0.0], ["10.0.0.1"], []

        class Names(FakeService):
            async def resolve(self, url):
                return tuple(addresses)

            async def send(self, request, address):
                if request.path == "/score":
                    used.append(address)
                return await super().send(request, address)

        settings = {"transport": Names(length), "timing": Timing(clock=lambda: now[0])}
        async with AsyncRewardClient("http://scorer", **settings) as client:
            await client.score(["a"])
            addresses[:] = ["10.0.0.2"]
            now[0] = 29.0
            await client.score(["a"])
            now[0] = 31.0
            await client.score(["a"])  # the lookup goes on beside it
            await client.score(["a"])
        return used

    assert asyncio.run(run()) == ["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2"]


def test_a_host_name_that_leads_nowhere_yet_is_looked_up_until_the_deadline(fake_time):
    class Nowhere(FakeService):
        lookups = 0

        async def resolve(self, url):
            self.lookups += 1
            if self.lookups < 4:
                raise ConnectionFailed(f"{url}: Name or service not known", connected=False)
            return ("10.0.0.1",)

    transport = Nowhere(length)
    assert score_async(["abc"], transport=transport, timing=fake_time.timing).floats == [3.0]
    assert transport.lookups == 4


# Hedging


def test_a_hedged_request_takes_the_first_answer_and_leaves_the_other():
    async def run():
        held, cancelled = [], []

        async def hold(request):
            if len(hosts.seen) < 60 or held:
                return hosts.service.answer(request)
            held.append(request)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(request)
                raise

        hosts, ticks = Hosts(a=hold), itertools.count()
        timing = Timing(clock=lambda: 0.02 * next(ticks))  # so that a busy machine makes no request look slow
        settings = {
            "transport": hosts,
            "max_items_per_request": 1,
            "max_concurrency": 1,
            "hedge": True,
            "timing": timing,
        }
        async with AsyncRewardClient("http://a,http://b", **settings) as client:
            scores = await client.score(["a"] * 100)
        return scores.floats, len(cancelled), hosts.count("a") + hosts.count("b")

    floats, num_cancelled, num_requests = asyncio.run(run())
    assert floats == [1.0] * 100
    assert num_cancelled == 1
    assert 101 <= num_requests <= 105


def test_without_hedging_no_request_is_sent_twice():
    async def run():
        async def slow(request):
            await asyncio.sleep(0.02 if len(hosts.seen) > 60 else 0)
            return hosts.service.answer(request)

        hosts = Hosts(a=slow, b=slow)
        settings = {"transport": hosts, "max_items_per_request": 1, "max_concurrency": 1}
        async with AsyncRewardClient("http://a,http://b", **settings) as client:
            await client.score(["a"] * 70)
        return hosts.count("a") + hosts.count("b")

    assert asyncio.run(run()) == 70


# Readiness and info


def test_info_is_what_the_service_says():
    with RewardClient(URL, transport=FakeService(length)) as client:
        assert client.info()["models"] == [{"model": "fake", "fingerprint": "sha256:fake", "engine": "fake"}]


def test_waiting_ends_when_one_replica_is_ready(fake_time):
    answers = [ConnectionFailed("refused", connected=False), json_response({}, 503), json_response({})]

    def answer(request):
        assert request.path == "/readyz"
        step = answers.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    with RewardClient(URL, transport=FakeTransport(answer), timing=fake_time.timing) as client:
        client.wait_until_ready(60.0)
    assert fake_time.slept == [0.5, 0.5]


def test_waiting_does_not_wait_for_a_silent_replica_when_another_is_ready():
    async def answer(request):
        if request.url.startswith("http://a"):
            await asyncio.Event().wait()
        return json_response({})

    with RewardClient("http://a,http://b", transport=FakeTransport(answer)) as client:
        client.wait_until_ready(60.0)


def test_waiting_for_a_service_that_never_is_ready_ends_at_the_deadline(fake_time):
    transport = FakeTransport(lambda request: json_response({"detail": "loading"}, 503))
    with (
        RewardClient(URL, transport=transport, timing=fake_time.timing) as client,
        pytest.raises(DeadlineExceeded, match=r"not ready within 2 s; last failure: .*loading"),
    ):
        client.wait_until_ready(2.0)
    assert fake_time.slept == [0.5] * 4


# Real sockets


@both
def test_scores_come_over_a_real_socket(score, serve):
    url = serve(FakeService(length, max_sequences_per_request=2))
    assert score(["a", "bb", "ccc"], url=url).floats == [1.0, 2.0, 3.0]


@both
def test_a_refused_connection_is_waited_for_until_the_deadline_and_says_so(score):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DeadlineExceeded, match=f"within 0.3 s; .*http://127.0.0.1:{port}/info .*Connection refused"):
        score(["a"], url=f"http://127.0.0.1:{port}", timeout_s=0.3)


@both
def test_a_refused_connection_is_told_when_no_retry_is_allowed(score):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionFailed, match=f"http://127.0.0.1:{port}/info .*Connection refused; check that"):
        score(["a"], url=f"http://127.0.0.1:{port}", max_retries=0)


@both
@pytest.mark.parametrize("trickle", [b"", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_never_ends_its_answer_is_left_at_the_deadline(score, trickle):
    """Silent, in the middle of a header, in the middle of the body: a byte now and then keeps no call alive."""
    stop = threading.Event()

    def answer_for_ever(server):
        connection, _ = server.accept()
        with connection, pytest.MonkeyPatch.context():
            connection.sendall(trickle)
            while trickle and not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return
            stop.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_for_ever, args=(server,))
        thread.start()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.3 s"):
            score(["a"], url=f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.3)
        stop.set()
        thread.join()


# The sync client


def silent_transport(arrived):
    """A transport that says when a request is there, and never answers it."""

    async def answer(request):
        arrived.set()
        await asyncio.Event().wait()

    return FakeTransport(answer)


def test_the_sync_client_works_inside_a_running_event_loop():
    async def run():
        return score_sync(["abc"], transport=FakeService(length))

    assert asyncio.run(run()).floats == [3.0]


def test_several_threads_may_share_one_sync_client():
    found = {}
    with RewardClient(URL, transport=FakeService(length)) as client:

        def work(size):
            found[size] = client.score(["a" * size]).floats

        threads = [threading.Thread(target=work, args=(size,)) for size in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {size: [float(size)] for size in range(1, 9)}


def test_closing_ends_the_calls_of_other_threads():
    arrived = threading.Event()
    client = RewardClient(URL, transport=silent_transport(arrived))
    failures = []

    def work():
        try:
            client.score(["a"])
        except PlauditError as error:
            failures.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    arrived.wait()
    client.close()
    thread.join()
    assert failures == ["client: closed during the call"]


def test_a_call_that_comes_while_the_client_closes_is_refused_instead_of_waiting_for_ever():
    closing, refused = threading.Event(), threading.Event()

    class SlowToClose(FakeService):
        async def close(self):
            closing.set()
            while not refused.is_set():  # noqa: ASYNC110  set by another thread
                await asyncio.sleep(0.001)

    client = RewardClient(URL, transport=SlowToClose(length))
    thread = threading.Thread(target=client.close)
    thread.start()
    closing.wait()
    with pytest.raises(PlauditError, match="client: already closed; create a new client"):
        client.score(["a"])
    refused.set()
    thread.join()


def test_a_closed_client_refuses_calls_and_may_be_closed_again():
    client = RewardClient(URL, transport=FakeService(length))
    client.close()
    client.close()
    with pytest.raises(PlauditError, match="client: already closed; create a new client"):
        client.score(["a"])
    assert "plaudit-client" not in {thread.name for thread in threading.enumerate()}


def test_a_client_that_nobody_closed_is_closed_at_exit_without_a_word(serve):
    url = serve(FakeService(length))
    code = (
        f"from plaudit_client import RewardClient; client = RewardClient({url!r}); print(client.score(['abc']).floats)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("[3.0]\n", "", 0)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_client_taken_through_a_fork_refuses_instead_of_hanging():
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with RewardClient(URL, transport=FakeService(length)) as client:

        def work():
            try:
                client.score(["a"])
            except PlauditError as error:
                answers.put(str(error))

        process = context.Process(target=work)
        process.start()
        process.join()
        assert answers.get() == "client: created before this process was forked; create a new client in each process"


# The async client


def test_a_cancelled_call_leaves_no_task_behind():
    async def run():
        arrived = asyncio.Event()
        async with AsyncRewardClient(URL, transport=silent_transport(arrived)) as client:
            call = asyncio.create_task(client.score(["a"]))
            await arrived.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()


def test_when_one_part_fails_the_others_are_cancelled():
    async def run():
        cancelled = []

        async def answer(request):
            if request.path != "/score":
                return HttpResponse(404, {}, b"")
            if b"bad" in request.body:
                return json_response({"detail": "no"}, 422)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(request)
                raise

        settings = {"transport": FakeTransport(answer), "max_items_per_request": 1}
        async with AsyncRewardClient(URL, **settings) as client:
            with pytest.raises(PlauditError, match="status 422"):
                await client.score(["a", "b", "bad"])
        return cancelled

    assert len(asyncio.run(run())) == 2


def test_an_async_client_refuses_another_event_loop_instead_of_hanging():
    client = AsyncRewardClient(URL, transport=FakeService(length))
    assert asyncio.run(client.score(["abc"])).floats == [3.0]
    with pytest.raises(
        PlauditError, match="client: belongs to another event loop; create one client for each event loop"
    ):
        asyncio.run(client.score(["abc"]))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_an_async_client_taken_through_a_fork_refuses():
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    client = AsyncRewardClient(URL, transport=FakeService(length))
    asyncio.run(client.score(["abc"]))

    def work():
        try:
            asyncio.run(client.score(["a"]))
        except PlauditError as error:
            answers.put(str(error))

    process = context.Process(target=work)
    process.start()
    process.join()
    assert answers.get() == "client: created before this process was forked; create a new client in each process"


# Both constructors


@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
@pytest.mark.parametrize(
    "wrong",
    [{"timeout_s": 0}, {"max_concurrency": 0}, {"max_items_per_request": 0}, {"url": "nowhere"}, {"api_key": "a\nb"}],
)
def test_a_wrong_setting_is_refused_at_once(kind, wrong):
    with pytest.raises(InvalidArgument):
        kind(**({"url": URL} | wrong))
    gc.collect()  # a half-made client would warn here


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_call_without_time_is_refused(timeout_s):
    with RewardClient(URL, transport=FakeService(length)) as client, pytest.raises(InvalidArgument, match="timeout_s"):
        client.score(["a"], timeout_s=timeout_s)


def test_a_closed_async_client_says_so():
    async def scenario():
        client = AsyncRewardClient("http://127.0.0.1:1")
        await client.aclose()
        with pytest.raises(PlauditError, match="client: already closed; create a new client"):
            await client.score(["a"])

    asyncio.run(scenario())


def test_a_request_that_fails_just_as_its_call_ends_leaves_no_complaint():
    complaints = []

    async def fail():
        raise ServiceUnavailable("busy")

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        request = asyncio.ensure_future(fail())
        await asyncio.wait({request})
        await cancel(request)
        del request
        gc.collect()

    asyncio.run(run())
    assert complaints == []
