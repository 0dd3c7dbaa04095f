"""What the fake engines have in common: a server on a real socket that lets a fake answer, and says nothing."""

from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHandler(BaseHTTPRequestHandler):
    """Hands every request to `respond`, which a subclass has; `fake` is who knows the answers."""

    protocol_version = "HTTP/1.1"

    def __init__(self, fake, *arguments):
        self.fake = fake
        super().__init__(*arguments)

    def do_GET(self):
        self.respond()

    def do_POST(self):
        self.respond()

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def log_message(self, *_arguments):
        pass


def fake_server(handler, fake, *, port=0):
    """A server that is not started; its threads end with the process."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(handler, fake))
    server.daemon_threads = True
    return server
