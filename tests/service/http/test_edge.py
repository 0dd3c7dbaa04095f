"""What surrounds the routes: TLS, keys, trace ids, the documentation page."""

import asyncio
import hmac
import json
import re
import ssl
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin

import httpx2
import pytest

from plaudit_service.errors import SettingsError
from plaudit_service.http import access
from plaudit_service.http.access import Access
from plaudit_service.http.asgi import send_answer
from plaudit_service.metrics import Metrics
from plaudit_service.settings import Settings

BODY = json.dumps({"items": [{"text": "good"}]})
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_with_a_certificate_the_service_speaks_https_and_nothing_else(serve, tiny_bundle, certificate):
    flags = ["--tls-certificate-file", str(certificate / "certificate.pem")]
    env = {"PLAUDIT_TLS_KEY_FILE": str(certificate / "key.pem")}
    with serve(tiny_bundle(), flags=flags, env=env) as service:
        assert service.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=certificate / "certificate.pem")
        answer = httpx2.post(f"{service.url}/score", content=BODY, verify=context)
        assert answer.json()["results"][0]["score"] == 1.0
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{service.url.replace('https', 'http')}/healthz")
        assert service.stop() == 0


def test_wrong_tls_files_are_named(certificate, tmp_path):
    pem, key, locked = (str(certificate / name) for name in ("certificate.pem", "key.pem", "locked.pem"))
    (tmp_path / "text").write_text("no PEM")
    for files, expected in [
        ((pem, ""), "must be given together"),
        (("", key), "must be given together"),
        (("/nowhere", key), "--tls-certificate-file /nowhere: cannot be read"),
        ((pem, "/nowhere"), "--tls-key-file /nowhere: cannot be read"),
        ((str(tmp_path / "text"), key), "these files are not a PEM certificate and its key"),
        ((key, pem), "these files are not a PEM certificate and its key"),
        ((pem, locked), "without a passphrase"),
    ]:
        with pytest.raises(SettingsError, match=expected):
            Settings(tls_certificate_file=files[0], tls_key_file=files[1]).tls()
    assert Settings().tls() is None


def test_a_traceparent_is_in_the_log_line_and_a_strange_one_is_not(serve, tiny_bundle):
    with serve(tiny_bundle()) as service:
        for value in (TRACEPARENT, "00-xyz"):
            httpx2.post(f"{service.url}/score", content=BODY, headers={"traceparent": value})
        lines = service.events("request")
        assert [line.get("traceparent") for line in lines] == [TRACEPARENT, None]


async def answer_ok(_scope, _receive, send):
    await send_answer(send, 200, b"text/plain", b"")


@pytest.mark.parametrize("given", ["first-key", "first-ke", "first-keyy", "f", "", "third-key"])
def test_every_key_is_compared_with_digests_of_one_length_in_constant_time(given, monkeypatch):
    compared = []

    def compare_digest(a, b):
        compared.append((len(a), len(b)))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(access.hmac, "compare_digest", compare_digest)
    layer = Access(answer_ok, metrics=Metrics(), api_keys=["first-key", "second-key"], routes=())

    async def ask():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=layer), base_url="http://plaudit") as client:
            return await client.get("/score", headers={"Authorization": f"Bearer {given}"})

    assert asyncio.run(ask()).status_code == (200 if given == "first-key" else 401)
    assert compared == [(32, 32), (32, 32)]


@pytest.mark.parametrize(
    ("keys", "key", "fair_by_address", "client"),
    [
        (("a", "b"), "b", False, "key 1"),
        (("a", "a"), "a", True, ""),
        ((), "", True, "10.0.0.7"),
        ((), "", False, ""),
    ],
)
def test_clients_are_told_apart_by_several_keys_or_where_it_is_wanted_by_address(keys, key, fair_by_address, client):
    seen = []

    async def answer(scope, receive, send):
        seen.append(scope["state"]["client"])
        await answer_ok(scope, receive, send)

    layer = Access(answer, metrics=Metrics(), api_keys=keys, routes=(), fair_by_address=fair_by_address)

    async def ask():
        transport = httpx2.ASGITransport(app=layer, client=("10.0.0.7", 1234))
        async with httpx2.AsyncClient(transport=transport, base_url="http://plaudit") as asking:
            await asking.get("/score", headers={"Authorization": f"Bearer {key}"})

    asyncio.run(ask())
    assert seen == [client]


def test_with_two_keys_a_client_leaves_room_for_the_other(serve, tiny_bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("trainer\nperson\n")
    flags = ["--api-key-file", str(keys), "--max-queued-sequences", "10"]
    with serve(tiny_bundle(), flags=flags) as service:
        body = json.dumps({"items": [{"text": "good"}] * 9})
        answer = httpx2.post(f"{service.url}/score", content=body, headers={"Authorization": "Bearer trainer"})
        assert answer.status_code == 413
        assert "one client's share of the queue is 8" in answer.json()["detail"]
        answer = httpx2.post(f"{service.url}/score", content=BODY, headers={"Authorization": "Bearer person"})
        assert answer.status_code == 200


class Links(HTMLParser):
    """Collects what a page loads."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in {"src", "href"}]


class StripsPrefix(BaseHTTPRequestHandler):
    """A proxy that answers below /rm, with what a service at `upstream` answers to the rest of the path."""

    upstream = ""

    def do_GET(self):
        inside = self.path.removeprefix("/rm")
        self.forward("GET", inside) if inside != self.path else self.send_error(404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.forward("POST", self.path.removeprefix("/rm"), body)

    def forward(self, method, path, body=None):
        answer = httpx2.request(method, self.upstream + path, content=body)
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def behind_prefix():
    """The URL of a service behind a proxy that strips a prefix of the path."""
    with ThreadingHTTPServer(("127.0.0.1", 0), StripsPrefix) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()

        def start(url):
            StripsPrefix.upstream = url
            return f"http://127.0.0.1:{proxy.server_address[1]}/rm"

        yield start
        proxy.shutdown()
        thread.join()


@pytest.mark.parametrize("is_behind_proxy", [False, True])
def test_the_documentation_page_finds_all_it_needs_also_below_a_prefix_and_loads_nothing_from_elsewhere(
    serve, tiny_bundle, behind_prefix, is_behind_proxy
):
    with serve(tiny_bundle()) as service:
        base = behind_prefix(service.url) if is_behind_proxy else service.url
        page = httpx2.get(f"{base}/docs").text
        (document,) = re.findall(r"url: '(.+)'", page)
        links = [*Links(page).found, document]
        assert len(links) == 4
        for link in links:
            assert urljoin(f"{base}/docs", link).startswith(f"{base}/")
            assert httpx2.get(urljoin(f"{base}/docs", link)).status_code == 200
        where = urljoin(f"{base}/docs", document)
        (server,) = httpx2.get(where).json()["servers"]
        score = urljoin(where, server["url"]).rstrip("/") + "/score"
        assert httpx2.post(score, content=BODY).json()["results"][0]["score"] == 1.0


def test_keys_protect_metrics_and_documentation_unless_they_are_opened(serve, tiny_bundle):
    paths = ("/metrics", "/docs", "/docs-assets/swagger-ui.css", "/openapi.json")
    env = {"PLAUDIT_API_KEYS": "a-key"}
    for flags, expected in (([], 401), (["--open-metrics"], 200)):
        with serve(tiny_bundle(), flags=flags, env=env) as service:
            assert [httpx2.get(service.url + path).status_code for path in paths] == [expected] * 4
            assert httpx2.get(f"{service.url}/info").status_code == 401
            assert httpx2.get(f"{service.url}/docs-assets/%2e%2e/info").status_code in {401, 404}
            assert httpx2.post(f"{service.url}/score", content=BODY).status_code == 401
