"""Faults and attacks on the HTTP side, with the real process and raw sockets."""

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

BODY = json.dumps({"items": [{"text": "good fine"}]}).encode()


def connect(service):
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def request(body=BODY, *headers, method="POST", path="/score"):
    head = [f"{method} {path} HTTP/1.1", "Host: plaudit", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def read_answer(sock):
    """Status and JSON body of one answer; None where the connection was closed instead."""
    with sock.makefile("rb") as file:
        try:
            line = file.readline()
        except ConnectionResetError:
            return None
        if not line:
            return None
        length = 0
        while header := file.readline().strip():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return int(line.split()[1]), json.loads(file.read(length))


def until_closed(sock):
    """Read until the server closes."""
    received = b""
    try:
        while chunk := sock.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def score(service):
    (result,) = httpx2.post(f"{service.url}/score", content=BODY, timeout=30).json()["results"]
    return result["score"]


def metric(service, name):
    lines = httpx2.get(f"{service.url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split()[:1] == [name])


def score_lines(service):
    return [line for line in service.events("request") if line["route"] == "/score"]


def test_200_connections_with_slow_headers_are_closed_and_others_are_answered_meanwhile(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--header-timeout-s", "1"]) as service, ExitStack() as stack:
        slow = [stack.enter_context(connect(service)) for _ in range(200)]
        for number, sock in enumerate(slow):
            if number % 2:  # the others say nothing at all
                sock.sendall(b"POST /score HTTP/1.1\r\nX-Slow: ")
        assert score(service) == 1.5
        assert [until_closed(sock) for sock in slow] == [b""] * 200
        assert score(service) == 1.5


@pytest.mark.parametrize("start", [b"POST /score HT", b"\r\n"])
def test_headers_of_a_later_request_on_a_kept_connection_have_the_same_time(serve, tiny_bundle, start):
    with serve(tiny_bundle(), flags=["--header-timeout-s", "1"]) as service, connect(service) as sock:
        sock.sendall(request())
        assert read_answer(sock)[0] == 200
        sock.sendall(start)
        assert until_closed(sock) == b""


def test_an_idle_connection_is_closed(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--keep-alive-s", "0.5"]) as service, connect(service) as sock:
        sock.sendall(request())
        assert read_answer(sock)[0] == 200
        assert until_closed(sock) == b""


def test_a_slow_body_is_answered_408_and_its_connection_closed(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--body-timeout-s", "1"]) as service, connect(service) as sock:
        sock.sendall(request()[:-1])
        status, document = read_answer(sock)
        assert (status, document["type"]) == (408, "urn:plaudit:body-timeout")
        assert document["detail"] == f"{len(BODY) - 1} bytes of the body arrived in 1 s; send it faster"
        assert until_closed(sock) == b""
        (line,) = service.events("request")
        assert (line["status"], line["outcome"]) == (408, "body-timeout")


def test_a_slow_body_that_no_route_reads_is_cut_too(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--body-timeout-s", "0.1"]) as service, connect(service) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: plaudit\r\nContent-Length: 1000000\r\n\r\n")
        assert read_answer(sock) == (200, {"status": "ok"})
        assert until_closed(sock) == b""


def test_a_body_in_chunks_of_6_bytes_is_accepted(serve, tiny_bundle):
    with serve(tiny_bundle()) as service, connect(service) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = json.dumps({"items": [{"text": "good " * 20}]}).encode()
        sock.sendall(b"POST /score HTTP/1.1\r\nHost: plaudit\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 6):
            chunk = body[at : at + 6]
            sock.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        sock.sendall(b"0\r\n\r\n")
        status, answer = read_answer(sock)
        assert (status, answer["results"][0]["score"]) == (200, 20.0)


@pytest.mark.parametrize("whole", [True, False], ids=["in one piece", "without end"])
def test_headers_of_64_kib_are_refused(serve, tiny_bundle, whole):
    with serve(tiny_bundle()) as service, connect(service) as sock:
        end = "\r\n\r\n" if whole else ""
        sock.sendall(f"GET /healthz HTTP/1.1\r\nHost: plaudit\r\nX-Large: {'x' * 65_536}{end}".encode())
        status, document = read_answer(sock)
        assert (status, document["type"]) == (431, "about:blank")
        assert document["detail"] == "the request's headers have more than 32768 bytes; send fewer"
        assert until_closed(sock) == b""
        assert score(service) == 1.5


def test_what_is_no_http_gets_a_problem_document(serve, tiny_bundle):
    with serve(tiny_bundle()) as service, connect(service) as sock:
        sock.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        status, document = read_answer(sock)
        assert (status, document["title"]) == (400, "Bad Request")


def test_an_offer_to_upgrade_to_http2_is_ignored_and_the_request_answered(serve, tiny_bundle):
    with serve(tiny_bundle()) as service, connect(service) as sock:
        sock.sendall(request(BODY, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"))
        assert read_answer(sock)[0] == 200


def test_a_connection_above_the_limit_is_closed_and_the_others_go_on(serve, tiny_bundle):
    with serve(tiny_bundle(), flags=["--max-connections", "2"]) as service, ExitStack() as stack:
        first, second = (stack.enter_context(connect(service)) for _ in range(2))
        for sock in (first, second):
            sock.sendall(request())
            assert read_answer(sock)[0] == 200
        assert until_closed(stack.enter_context(connect(service))) == b""
        first.sendall(request())
        assert read_answer(first)[0] == 200


LARGE = [
    (b"[" * 10_000 + b"]" * 10_000, {400, 422}),
    (b'{"items": [' + b"0," * 999_999 + b"0]}", {413, 422}),
    (json.dumps({"items": [{"prompt": "a", "completions": [""] * 1_000_000}]}).encode(), {413}),
    (json.dumps({"items": [{"text": "a" * 10_000_000}]}).encode(), {413}),
    (b" " * 33_554_433, {413}),
]


def test_huge_requests_are_refused_while_others_are_answered_and_memory_stays_bounded(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        score(service)
        before = metric(service, "process_resident_memory_bytes")
        done = threading.Event()

        def ask():
            scores = [score(service)]
            while not done.is_set():
                scores.append(score(service))
            return scores

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            try:
                for body, expected in LARGE:
                    answer = httpx2.post(f"{service.url}/score", content=body, timeout=60)
                    assert answer.status_code in expected
                    assert answer.headers["content-type"] == "application/problem+json"
            finally:
                done.set()
            assert set(asked.result()) == {1.5}
        # The largest body, as bytes and parsed, and what the allocator keeps.
        assert metric(service, "process_resident_memory_bytes") - before < 400e6


STRANGE = ["good \x00 fine", "", " \t\n", "[BOS] [EOS] good", "[PAD]", "\u202e good", "\U0010ffff good"]


def test_strange_texts_get_a_status_and_never_500(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        answer = httpx2.post(f"{service.url}/score", json={"items": [{"text": text} for text in STRANGE]})
        statuses = [result["status"] for result in answer.json()["results"]]
        assert statuses == ["ok", "empty", "empty", "ok", "empty", "ok", "ok"]
        for body in (b'{"items": [{"text": "\\ud800"}]}', b'{"items": [{"text": "\xff\xfe"}]}'):
            answer = httpx2.post(f"{service.url}/score", content=body)
            assert answer.status_code in {400, 422}
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_client_that_leaves_takes_its_queued_sequences_out(serve, causal_bundle):
    with serve(causal_bundle, flags=["--max-batch-tokens", "64"]) as service:
        texts = [{"text": f"good {number} " * 12} for number in range(1024)]
        with connect(service) as sock:
            sock.sendall(request(json.dumps({"items": texts}).encode()))
            while metric(service, "plaudit_queued_sequences") == 0:
                assert not score_lines(service), "answered before its client could leave"
        while not score_lines(service):
            assert service.process.poll() is None
        assert [(line["outcome"], line["status"]) for line in score_lines(service)] == [("cancelled", 0)]
        while metric(service, "plaudit_queued_sequences") > 0:
            assert service.process.poll() is None
        assert metric(service, "plaudit_cancelled_total") > 0
        assert score(service) is not None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def test_a_full_disk_behind_the_log_does_not_stop_scoring(tiny_bundle):
    command = Path(sys.executable).with_name("plaudit-serve")
    url = f"http://127.0.0.1:{(port := free_port())}"
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen([command, tiny_bundle(), "--port", str(port)], stderr=full)
    try:
        transport = httpx2.HTTPTransport(retries=10)  # until it listens
        with httpx2.Client(transport=transport, timeout=30) as client:
            while client.get(f"{url}/readyz").status_code != 200:
                assert process.poll() is None
            for _ in range(200):
                assert client.post(f"{url}/score", content=BODY).json()["results"][0]["score"] == 1.5
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_the_service_accepts_again_after_its_file_descriptors_were_exhausted(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        files = Path(f"/proc/{service.process.pid}/fd")
        with ExitStack() as stack:
            waiting = [stack.enter_context(connect(service)) for _ in range(100)]
            for sock in waiting:
                sock.sendall(request())
            answers = [read_answer(sock) for sock in waiting]
            assert 20 < len([answer for answer in answers if answer is not None]) < 64
            assert len(list(files.iterdir())) == 64
        assert score(service) == 1.5


def test_a_wall_clock_that_jumps_by_an_hour_fires_no_timeout(serve, tiny_bundle, tmp_path):
    """`time.time` of the process moves one hour with each call; every timeout is a minute or less."""
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\nclock = itertools.count(time.time(), 3600)\ntime.time = lambda: next(clock)\n"
    )
    with serve(tiny_bundle(), env={"PYTHONPATH": str(tmp_path)}) as service, connect(service) as sock:
        for _ in range(3):
            whole = request(BODY, "X-Request-Timeout-S: 60")
            sock.sendall(whole[:-5])
            assert score(service) == 1.5
            sock.sendall(whole[-5:])
            assert read_answer(sock)[0] == 200
        times = [line["time"] for line in service.events("request")]
        assert len({time[:13] for time in times}) == len(times)
