"""What one small request costs the service besides its model: requests/s and CPU of the server per request.

The model is the hand-made one, which computes next to nothing. The load comes from raw sockets in one loop, so that
little of the machine goes to it. Prints one row per number of connections, and one JSON object as the last line.

    .venv/bin/python loadtests/http_cost.py --help
"""

import argparse
import json
import os
import selectors
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from plaudit_service.testing import running_service, write_tiny_bundle

BODY = json.dumps({"items": [{"text": "good fine bad good unknown words are worth nothing"}]}).encode()


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64], help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4, help="of each counted round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="after one warm-up (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle")
        with running_service(bundle, flags=["--num-threads", "1"]) as service:
            total = len(options.connections) * (options.rounds + 1)
            progress = tqdm(total=total, desc="measuring", unit="round", file=sys.stderr)
            for connections in options.connections:
                rounds = []
                for _ in range(options.rounds + 1):
                    rounds.append(measure(service.url, service.process.pid, connections, options.seconds))
                    progress.update()
                medians = {key: statistics.median(row[key] for row in rounds[1:]) for key in rounds[0]}
                rows.append({"connections": connections} | {key: round(value, 4) for key, value in medians.items()})
            progress.close()
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(json.dumps({"benchmark": "http-cost", "cores": len(os.sched_getaffinity(0)), "rows": rows}))
    return 0


def measure(url: str, server: int, connections: int, seconds: float) -> dict[str, float]:
    """One round: each connection sends its next request when it has the answer to the last."""
    address = urlsplit(url)
    head = f"POST /score HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    selector = selectors.DefaultSelector()
    sent_at: dict[socket.socket, float] = {}
    for _ in range(connections):
        sock = socket.create_connection((address.hostname, address.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ)
    latencies: list[float] = []
    cpu_s, own_cpu_s = server_cpu_s(server), time.process_time()
    started = time.perf_counter()
    for key in selector.get_map().values():
        sent_at[key.fileobj] = time.perf_counter()  # type: ignore[index]
        key.fileobj.sendall(request)  # type: ignore[union-attr]
    while sent_at:
        for key, _ in selector.select():
            sock = key.fileobj  # type: ignore[assignment]
            read_answer(sock)
            now = time.perf_counter()
            latencies.append(now - sent_at.pop(sock))
            if now - started < seconds:
                sent_at[sock] = now
                sock.sendall(request)
    wall_s = time.perf_counter() - started
    cpu_s, own_cpu_s = server_cpu_s(server) - cpu_s, time.process_time() - own_cpu_s
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    return {
        "requests_per_s": len(latencies) / wall_s,
        "server_cpu_ms": 1000 * cpu_s / len(latencies),
        "load_cpu_ms": 1000 * own_cpu_s / len(latencies),
        "median_ms": 1000 * statistics.median(latencies),
    }


def read_answer(sock: socket.socket) -> None:
    """Read one whole answer, which must be a score."""
    data = b""
    while b"\r\n\r\n" not in data or len(data) < _length(data):
        chunk = sock.recv(65536)
        assert chunk, f"the connection was closed after {data!r}"
        data += chunk
    assert data.startswith(b"HTTP/1.1 200"), data
    assert b'"status":"ok"' in data, data


def _length(data: bytes) -> int:
    head, _, _ = data.partition(b"\r\n\r\n")
    return len(head) + 4 + int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])


def server_cpu_s(server: int) -> float:
    """CPU seconds of a process so far, user and system, all threads."""
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
