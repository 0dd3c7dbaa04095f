"""A scoring service that costs nothing: prepared answers, so that what is measured is the client alone.

Run as a process of its own, with the seconds that each score takes as its argument; prints its port. Counts the texts
of a body without parsing it.
"""

import asyncio
import sys

_RESULT = b'{"status":"ok","score":-1.2345678901234567,"num_tokens":153,"truncated":false}'
_INFO = b'{"limits":{"max_sequences_per_request":1024,"max_body_bytes":33554432}}'

_DELAY_S = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0


class Protocol(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end]).lower()
            _, found, length = head.partition(b"content-length:")
            total = end + 4 + (int(length.split(b"\r\n")[0]) if found else 0)
            if len(self._received) < total:
                return
            if head.startswith(b"get"):
                self._answer(_INFO)
            else:
                answer = _score(self._received.count(b'{"text"', end, total))
                asyncio.get_running_loop().call_later(_DELAY_S, self._answer, answer)
            del self._received[:total]

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def _score(count: int) -> bytes:
    head = b'{"model":"m","fingerprint":"sha256:1","engine":"e","results":['
    return head + b",".join([_RESULT] * count) + b"]}"


async def main() -> None:
    """Serve until the process is killed."""
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
