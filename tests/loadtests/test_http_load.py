"""Against a fake server on a real socket."""

import asyncio
import itertools
import json
from contextlib import asynccontextmanager

import pytest
from http_load import Answer, Client, closed_loop, open_loop, poisson_arrivals, post


async def read_request(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(dict(line.lower().split(b": ") for line in head.split(b"\r\n")[1:-2])[b"content-length"])
    return head, await reader.readexactly(size)


def answer(body, *, status=b"200 OK", headers=b""):
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


async def echo(reader, writer, seen):
    while not reader.at_eof():
        try:
            head, body = await read_request(reader)
        except asyncio.IncompleteReadError:
            break
        seen.append((writer, head, body))
        writer.write(answer(body))


@asynccontextmanager
async def fake_server(handle):
    seen = []

    async def connected(reader, writer):
        try:
            await handle(reader, writer, seen)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


def test_answers_come_in_the_order_of_the_requests_over_no_more_connections_than_asked_for():
    async def run():
        async with fake_server(echo) as (url, seen):
            answers = await closed_loop(url, [post(url, {"n": n}) for n in range(40)], connections=3)
            return answers, seen

    answers, seen = asyncio.run(run())
    assert [each.json()["n"] for each in answers] == list(range(40))
    assert {each.status for each in answers} == {200}
    assert len({writer for writer, _, _ in seen}) == 3


def test_an_answer_in_chunks_is_put_together_however_it_arrives():
    async def in_chunks(reader, writer, seen):
        _, body = await read_request(reader)
        chunks = [body[:3], body[3:]]
        parts = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
        parts += [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
        for byte in b"".join([*parts, b"0\r\n\r\n"]):
            writer.write(bytes([byte]))
            await writer.drain()

    async def run():
        async with fake_server(in_chunks) as (url, _):
            return await closed_loop(url, [post(url, {"n": "\r\n0\r\n\r\n"})], connections=1)

    (whole,) = asyncio.run(run())
    assert (whole.status, whole.json()) == (200, {"n": "\r\n0\r\n\r\n"})


def test_a_request_has_its_path_its_headers_and_the_bytes_of_its_body():
    async def run():
        async with fake_server(echo) as (url, seen):
            await closed_loop(url, [post(url, b"{not json", path="/x", headers={"X-Id": "7"})], connections=1)
            return seen

    ((_, head, body),) = asyncio.run(run())
    assert head.startswith(b"POST /x HTTP/1.1\r\n")
    assert b"\r\nX-Id: 7\r\n" in head
    assert body == b"{not json"


def test_an_answer_that_comes_byte_by_byte_is_whole():
    async def drip(reader, writer, seen):
        await read_request(reader)
        for byte in answer(b'{"a": 1}', headers=b"Server-Timing: queue;dur=1.5, infer;dur=20\r\n"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async def run():
        async with fake_server(drip) as (url, _):
            return await closed_loop(url, [post(url, {})], connections=1)

    (got,) = asyncio.run(run())
    assert got.json() == {"a": 1}
    assert got.server_timing() == {"queue": 0.0015, "infer": 0.02}


def test_a_server_that_hangs_up_is_status_0_and_the_next_request_gets_a_new_connection():
    async def fickle(reader, writer, seen):
        _, body = await read_request(reader)
        seen.append(body)
        whole = answer(body, headers=b"Connection: close\r\n")
        writer.write(whole if len(seen) > 1 else whole[:-1])

    async def run():
        async with fake_server(fickle) as (url, _):
            return await closed_loop(url, [post(url, {"n": n}) for n in range(3)], connections=1)

    assert [each.status for each in asyncio.run(run())] == [0, 200, 200]


def test_a_client_that_leaves_closes_its_connection():
    async def run():
        gone = asyncio.Event()

        async def silent(reader, writer, seen):
            await read_request(reader)
            assert await reader.read() == b""
            gone.set()

        async with fake_server(silent) as (url, _):
            left = await Client(url).send(post(url, {}), timeout_s=0.01)
            await asyncio.wait_for(gone.wait(), 10)
            return left

    assert asyncio.run(run()).status == 0


def test_a_refused_connection_is_status_0():
    async def run():
        async with fake_server(echo) as (url, _):
            pass
        return await Client(url).send(post(url, {}))

    assert asyncio.run(run()).status == 0


def test_an_open_loop_sends_without_waiting_for_earlier_answers():
    async def run():
        everyone_is_there = asyncio.Event()

        async def gather_all(reader, writer, seen):
            _, body = await read_request(reader)
            seen.append(body)
            if len(seen) == 5:
                everyone_is_there.set()
            await everyone_is_there.wait()  # would hang if one request waited for another
            writer.write(answer(body))

        async with fake_server(gather_all) as (url, _):
            return await open_loop(url, [post(url, {"n": n}) for n in range(5)], [0.0] * 5)

    answers = asyncio.run(run())
    assert [each.json()["n"] for each in answers] == list(range(5))


def test_latency_counts_from_when_the_request_was_due():
    assert Answer(200, b"", b"", since=10.0, finished=12.5).seconds == 2.5

    async def run():
        async with fake_server(echo) as (url, _):
            return await Client(url).send(post(url, {}), since=asyncio.get_running_loop().time() - 100)

    assert asyncio.run(run()).seconds >= 100


def test_arrivals_are_random_rise_and_have_the_rate():
    due = poisson_arrivals(50, 100, seed=1)
    assert due == sorted(due)
    assert due[0] > 0
    assert due[-1] < 100
    assert len(due) == pytest.approx(5000, rel=0.05)
    gaps = [later - sooner for sooner, later in itertools.pairwise(due)]
    # Exponential gaps: their standard deviation equals their mean.
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)
    assert due == poisson_arrivals(50, 100, seed=1) != poisson_arrivals(50, 100, seed=2)


def test_a_header_is_found_whatever_its_case_and_absent_is_none():
    got = Answer(429, b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1", json.dumps({}).encode(), 0, 0)
    assert got.header("retry-after") == "1"
    assert got.header("server-timing") is None
    assert got.server_timing() == {}
