"""The real network against real sockets that misbehave."""

import asyncio
import contextlib
import socket

import pytest

from plaudit_client import RewardClient
from plaudit_client.errors import ConnectionFailed, InvalidAnswer
from plaudit_client.testing import FakeTransport
from plaudit_client.transport import HttpRequest, HttpResponse, Network

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextlib.asynccontextmanager
async def serving(answer):
    """A server that reads each request up to its empty line and then calls `answer(writer)`; gives the base URL."""
    connections = []

    async def handle(reader, writer):
        connections.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await answer(writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    finally:
        server.close()
        for writer in connections:
            writer.close()


def write(content):
    async def answer(writer):
        writer.write(content)
        await writer.drain()

    return answer


async def get(network, url, **settings):
    return await network.send(HttpRequest("GET", f"{url}/info", {}, **settings), "127.0.0.1")


@contextlib.asynccontextmanager
async def opened(**settings):
    network = Network(**({"max_age_s": 30.0} | settings))
    try:
        yield network
    finally:
        await network.close()


def test_an_endless_body_is_read_up_to_one_byte_more_than_allowed():
    async def endless(writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async def run():
        async with serving(endless) as (url, _), opened() as network:
            return await get(network, url, max_answer_bytes=100_000)

    assert asyncio.run(run()).body == b" " * 100_001


def test_a_compressed_answer_is_not_read():
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1000000000\r\n\r\n"

    async def run():
        async with serving(write(head)) as (url, _), opened() as network:
            return await get(network, url)

    answer = asyncio.run(run())
    assert (answer.body, answer.headers["content-encoding"]) == (b"", "gzip")


def test_neither_key_nor_prompt_is_in_the_text_form_of_a_request():
    request = HttpRequest("POST", "http://a/score", {"Authorization": "Bearer secret"}, b"prompt")
    assert repr(request) == "HttpRequest(method='POST', url='http://a/score', max_answer_bytes=65536)"


def test_a_redirect_is_not_followed():
    async def run():
        redirect = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://elsewhere\r\nContent-Length: 0\r\n\r\n"
        async with serving(write(redirect)) as (url, _), opened() as network:
            return await get(network, url)

    assert asyncio.run(run()).status == 307


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_http_or_breaks_off_is_a_failed_connection(content):
    async def answer(writer):
        writer.write(content)
        writer.close()

    async def run():
        async with serving(answer) as (url, _), opened() as network:
            await get(network, url)

    with pytest.raises(ConnectionFailed) as caught:
        asyncio.run(run())
    assert caught.value.connected


def test_a_refused_connection_is_told_apart_because_nothing_was_sent():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    async def run():
        async with opened() as network:
            await get(network, f"http://127.0.0.1:{port}")

    with pytest.raises(ConnectionFailed, match=r"^Connection refused$") as caught:
        asyncio.run(run())
    assert not caught.value.connected


def test_a_connection_is_used_again_until_it_is_old():
    now = [0.0]

    async def run():
        async with serving(write(OK)) as (url, connections), opened(clock=lambda: now[0], max_age_s=30.0) as network:
            counts = []
            for now[0] in (0.0, 29.0, 30.0, 31.0, 61.0):
                await get(network, url)
                counts.append(len(connections))
            return counts

    assert asyncio.run(run()) == [1, 1, 2, 2, 3]


def test_an_old_connection_finishes_its_request_and_is_closed_then():
    now = [0.0]

    async def run():
        arrived, release = asyncio.Event(), asyncio.Event()

        async def answer(writer):
            arrived.set()
            if len(connections) == 1:
                await release.wait()
            writer.write(OK)

        async with serving(answer) as (url, connections), opened(clock=lambda: now[0]) as network:
            first = asyncio.create_task(get(network, url))
            await arrived.wait()
            now[0] = 31.0
            await get(network, url)
            release.set()
            assert (await first).status == 200
            while not connections[0].is_closing():  # noqa: ASYNC110  the server sees the end when it reads it
                await asyncio.sleep(0)

    asyncio.run(run())


def test_the_connections_to_one_address_can_be_closed():
    async def run():
        async with serving(write(OK)) as (url, connections), opened() as network:
            await get(network, url)
            await network.disconnect(f"{url}/score", "127.0.0.1")
            await network.disconnect(url, "127.0.0.1")
            while not connections[0].is_closing():  # noqa: ASYNC110  the server sees the end when it reads it
                await asyncio.sleep(0)
            await get(network, url)
            return len(connections)

    assert asyncio.run(run()) == 2


@pytest.mark.parametrize(("url", "host"), [("http://127.0.0.2:80", "127.0.0.2"), ("http://[::1]:80", "::1")])
def test_an_ip_address_is_not_looked_up(url, host, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: pytest.fail("looked up"))
    assert asyncio.run(Network(max_age_s=1.0).resolve(url)) == (host,)


def entry(family, address):
    return family, socket.SOCK_STREAM, 0, "", (address, 80)


@pytest.mark.parametrize(
    ("found", "addresses"),
    [
        ([entry(socket.AF_INET6, "::1"), entry(socket.AF_INET, "10.0.0.1")], ("10.0.0.1",)),
        ([entry(socket.AF_INET, "10.0.0.1"), entry(socket.AF_INET, "10.0.0.2")], ("10.0.0.1", "10.0.0.2")),
        ([entry(socket.AF_INET6, "fd00::1"), entry(socket.AF_INET6, "fd00::1")], ("fd00::1",)),
    ],
)
def test_a_host_name_leads_to_its_ipv4_addresses_or_else_its_ipv6_ones(found, addresses, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    assert asyncio.run(Network(max_age_s=1.0).resolve("http://scorer")) == addresses


def test_an_unknown_host_name_says_so(monkeypatch):
    def fail(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ConnectionFailed, match=r"^http://scorer: Name or service not known; check the host name$"):
        asyncio.run(Network(max_age_s=1.0).resolve("http://scorer"))


def test_the_host_header_is_the_name_and_the_connection_goes_to_the_address():
    seen = []

    async def handle(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        writer.close()

    async def run():
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with opened() as network:
            await get(network, f"http://scorer.test:{port}")
        server.close()
        return port

    port = asyncio.run(run())
    assert f"Host: scorer.test:{port}\r\n".encode() in seen[0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>sign in</html>", "not JSON"),
        (b'{"model": "m", "fingerprint": "f", "engine": "e", "results": []}', "0 results for 1 sequences"),
        (
            b'{"model": "m", "fingerprint": "f", "engine": "e", "results": [{"status": "ok", "score": NaN}]}',
            "contains NaN",
        ),
    ],
)
def test_an_answer_that_cannot_be_scores_is_a_typed_error_over_a_real_socket(answer, message, serve):
    def judge(request):
        return HttpResponse(200 if request.path == "/score" else 404, {"content-type": "text/html"}, answer)

    with RewardClient(serve(FakeTransport(judge))) as client, pytest.raises(InvalidAnswer, match=message):
        client.score(["a"])
