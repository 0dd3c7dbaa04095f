"""A server that speaks the routes of vLLM's pooling server over a real socket, and scores as the tiny bundle does.

Its faults are those that vLLM was seen to have, or that a wrong flag or another checkpoint gives it. As a process:
`python fake_pooling.py PORT TABLE`, where the table is the JSON of the value of each token id.
"""

import json
import math
import ssl
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
from fake_http import FakeHandler, fake_server

KEY = "engine-key"
# What is wrong with the scores, which the check at the start has to notice.
WRONG = ("sigmoid", "another checkpoint", "no head", "zeros", "wrong pooling", "short answer", "nan")
# What is wrong with the server, as a reason of `remote_losses`.
LOST = {
    "hang": "hangs", "drip": "hangs", "500": "down", "503": "overloaded", "sick": "down", "drops": "down",
    "redirect": "down", "html": "wrong", "lists": "wrong", "huge": "wrong",
}  # fmt: skip
CRASH = 9  # the id that it refuses lists for, as vLLM does what is too long for it


class FakePooling:
    """One server.

    Args:
        table: the value of each token id; head number k gives (k + 1) times their sum.
        num_heads: labels of its classifier.
        port: 0 for any.
        certificate: a folder with `certificate.pem` and `key.pem`, to speak HTTPS; None: HTTP.

    Attributes:
        url: its address.
        fault: what is wrong with it now: None, or one of WRONG and LOST, "restarts", "wrong key", "poisoned".
        started: when its process began, as its metrics say.
        lists: how many sequences each list had, in order of arrival.
        dropped: requests whose client left.
    """

    def __init__(self, table, *, num_heads=1, port=0, max_model_len=64, certificate=None):
        self._table = np.array(table, dtype=np.float32)
        self._num_heads = num_heads
        self.fault = None
        self.started = 1000.0
        self.max_model_len = max_model_len
        self.lists = []
        self.ids = []
        self.in_flight = 0
        self._released = threading.Event()  # what hangs does so until then
        self._gate = threading.Event()
        self._gate.set()
        self._server = fake_server(_Handler, self, port=port)
        self._server.handle_error = lambda *_: None  # clients leave
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http", "https")

    def start(self):
        """Answer from now on."""
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def serve_forever(self):
        self._server.serve_forever(0.01)

    @property
    def is_released(self):
        """Whether it was closed, so that what still comes is not answered."""
        return self._released.is_set()

    def release(self):
        """Let go of what hangs, and hang no more."""
        self._released.set()
        self._released = threading.Event()

    def drip(self, file):
        """A byte now and then, too slowly for a whole number, until it is let go of."""
        released = self._released
        while not released.wait(0.3):
            file.write(b"\0")
            file.flush()

    def close(self):
        """Refuse connections from now on, as a killed server does; requests in flight are cut."""
        self._released.set()
        self._gate.set()
        self._server.shutdown()
        self._server.server_close()

    def hold(self):
        """Keep lists waiting until `go_on`."""
        self._gate.clear()

    def go_on(self):
        self._gate.set()

    def answer(self, path, body, key):
        """Status and body."""
        if path == "/health":
            return (503 if self.fault in {"500", "sick"} else 200), b""
        if path == "/v1/models":
            if self.fault == "wrong key" and key != f"Bearer {KEY}":
                return 401, b"{}"
            card = {"id": "rm", "parent": None, "max_model_len": self.max_model_len}
            return 200, json.dumps({"data": [card]}).encode()
        if path == "/version":
            return 200, b'{"version": "0.32.0"}'
        if path == "/metrics":
            return 200, f"# TYPE x gauge\nprocess_start_time_seconds {self.started}\n".encode()
        if path == "/pooling":
            return self._pool(json.loads(body))
        return 404, b"{}"

    def _pool(self, asked):
        assert (asked["model"], asked["task"], asked["use_activation"]) == ("rm", "classify", False)
        assert (asked["encoding_format"], asked["embed_dtype"], asked["endianness"]) == (
            "bytes_only",
            "float32",
            "little",
        )
        assert "truncate_prompt_tokens" not in asked
        sequences = asked["input"]
        self.lists.append(len(sequences))
        self.ids.append(sequences)
        self.in_flight += 1
        released = self._released
        try:
            self._gate.wait()
            if self.fault == "hang":
                released.wait()
            match self.fault:
                case "500" | "503":
                    return int(self.fault), b"{}"
                case "redirect":
                    return 307, b""
                case "html":
                    return 200, b"<!doctype html><title>Sign in</title>"
                case "lists":
                    return 200, json.dumps([[1.0]] * len(sequences)).encode()
                case "huge":
                    return 200, bytes(64 << 20)
            if any(CRASH in ids or not 0 < len(ids) <= self.max_model_len for ids in sequences):
                return 400, b'{"error": {"message": "it is too long"}}'
            return 200, self._answer_bytes(sequences, asked.get("cache_salt"))
        finally:
            self.in_flight -= 1

    def _answer_bytes(self, sequences, salt):
        rows = [[self._sum(ids) * (head + 1) for head in range(self._num_heads)] for ids in sequences]
        values = np.array(rows, dtype=np.float64)
        match self.fault:
            case "sigmoid":
                values = 1 / (1 + np.exp(-values))
            case "another checkpoint":
                values = 0.3 - values
            case "no head":
                values = values * 0 + 1e16
            case "zeros":
                values = values * 0
            case "nan":
                values[0] = math.nan
            case "poisoned" if salt is None:  # by another list, and kept with the prefixes
                values[:] = math.nan
        content = values.astype("<f4").tobytes()
        return content[:-4] if self.fault == "short answer" else content

    def _sum(self, ids):
        return float(self._table[ids[:-1] if self.fault == "wrong pooling" else ids].sum())


class _Handler(FakeHandler):
    def respond(self):
        status, content = self.fake.answer(self.path, self.body(), self.headers.get("Authorization"))
        if self.fake.is_released or (self.fake.fault == "drops" and self.path == "/pooling"):
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if self.fake.fault == "redirect":
            self.send_header("Location", "/health")
        self.end_headers()
        if self.fake.fault == "drip" and self.path == "/pooling":
            self.fake.drip(self.wfile)
        self.wfile.write(content)


@contextmanager
def fake_pooling(table, **options):
    """Yield a server in this process, and end it."""
    fake = FakePooling(table, **options)
    fake.start()
    try:
        yield fake
    finally:
        fake.close()


if __name__ == "__main__":
    server = FakePooling(json.loads(sys.argv[2]), port=int(sys.argv[1]))
    server.started = time.time()
    server.serve_forever()
